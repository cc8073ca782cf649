"""`prefilled_by` on the real chat templates that TRL ships, and on what a user may write."""

from importlib.resources import files

import pytest

from thinkgate.errors import ConfigError
from thinkgate.format import THINK, Tags, prefilled_by

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n%s{% endif %}"
)


def tokenizer_with(chat_template: str | None):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = chat_template
    return tokenizer


def shipped(name: str):
    pytest.importorskip("trl")
    return tokenizer_with((files("trl") / "chat_templates" / f"{name}.jinja").read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("deepseek_r1_distill", {}, True),
        ("deepseekv3", {}, True),
        ("qwen3", {}, False),
        ("qwen3", {"enable_thinking": True}, False),
        (
            "qwen3",
            {"enable_thinking": False},
            False,
        ),  # the template opens the thought and closes it
        ("qwen3_5_think", {}, True),
        ("qwen3_5_think", {"enable_thinking": False}, False),
        ("qwen3_5_nothink", {}, False),
        ("qwen3_5_nothink", {"enable_thinking": True}, True),
        ("qwen3_instruct_2507", {}, False),
        ("glm4moe", {}, False),
        ("glm4moe", {"enable_thinking": False}, False),
        ("nemotron_3_nano", {"enable_thinking": True}, True),
        ("nemotron_3_nano", {"enable_thinking": False}, False),
        ("llama3_1", {}, False),
        ("qwen2_5", {}, False),
    ],
)
def test_real_templates(name, kwargs, expected):
    assert prefilled_by(shipped(name), **kwargs) is expected


CONVERSATIONS = {
    "opens a tag": [{"role": "user", "content": "What does <think> mean?"}],
    "ends in a tag": [{"role": "user", "content": "Continue: <think>"}],
    "closes a tag": [{"role": "user", "content": "What does </think> mean?"}],
    "several turns": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\n1+1 = 2\n</think>\n\n2"},
        {"role": "user", "content": "and <think>?"},
    ],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(
    ("name", "expected"), [("qwen3", False), ("deepseek_r1_distill", True), ("qwen3_5_think", True)]
)
def test_what_users_write_changes_nothing(name, expected, messages):
    assert prefilled_by(shipped(name), messages) is expected


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        ("<think>\\n", True),
        ("<think>", True),
        ("<think>\\nOkay, ", True),
        ("<think>\\n\\n</think>\\n\\n", False),
        ("<think></think><think>", True),
        ("", False),
        ("< think>", False),
    ],
)
def test_any_generation_prompt(opening, expected):
    assert prefilled_by(tokenizer_with(CHATML.replace("%s", opening))) is expected


def test_a_tag_may_share_characters_with_what_the_other_rendering_ends_in():
    """Without a generation prompt this template ends in `<|end|>`; only `<` is common."""
    template = "{{ messages[0].content }}{{ '<think>' if add_generation_prompt else '<|end|>' }}"
    assert prefilled_by(tokenizer_with(template)) is True


def test_other_tags():
    tokenizer = tokenizer_with(CHATML.replace("%s", "<think>\\n"))
    assert prefilled_by(tokenizer, tags=Tags("<reasoning>", "</reasoning>")) is False
    assert prefilled_by(tokenizer, tags=THINK) is True


@pytest.mark.parametrize(
    ("said", "expected"),
    [("<think>\n1+1", True), ("<think>\n2\n</think>\n\nSo", False), ("So", False)],
)
@pytest.mark.parametrize("question", ["1+1?", "<think>"])
def test_a_continued_message_counts_as_far_as_it_goes(said, expected, question):
    tokenizer = tokenizer_with(CHATML.replace("%s", ""))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    assert prefilled_by(tokenizer, messages, continue_final_message=True) is expected
    alone = prefilled_by(tokenizer, messages[1:], continue_final_message=True)
    assert alone is expected


def test_a_tokenizer_without_a_template_is_a_user_error():
    with pytest.raises(ConfigError, match="chat_template"):
        prefilled_by(tokenizer_with(None))
