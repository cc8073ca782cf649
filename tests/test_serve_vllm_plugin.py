"""Our splitter as vLLM's reasoning parser: through vLLM's parser classes, then its real server.

The server's model is trained here for some seconds until it recites the texts in `RECITED`; its
tokens are single bytes, so that every tag is spelled out, and the server merges three per delta.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkgate.format import SplitStatus, split

pytest.importorskip("vllm")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if prefill is defined %}{{ prefill }}{% endif %}{% endif %}"
)
OPEN, NO_THOUGHT = "<think>\n", "<think>\n\n</think>\n\n"


def make_tokenizer(tags: str = "spelled"):
    """One token per byte; the tags spelled out, or one plain token each, or one special each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if tags != "spelled":
        special = tags == "special"
        pair = [AddedToken(tag, special=special) for tag in ("<think>", "</think>")]
        (inner.add_special_tokens if special else inner.add_tokens)(pair)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    if tags == "special":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module", params=["spelled", "token", "special"])
def tokenizer(request):
    return make_tokenizer(request.param)


def chat_request(**fields):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    question = [{"role": "user", "content": "Is <think> a tag?"}]
    return ChatCompletionRequest.model_validate({"messages": question, **fields})


def make_parser(tokenizer, prefill: str = "", **names):
    from vllm.parser import ParserManager

    import thinkgate_serve.vllm_reasoning_parser  # noqa: F401  (registers `thinkgate`)

    parser_class = ParserManager.get_parser(reasoning_parser_name="thinkgate", **names)
    assert parser_class is not None
    return parser_class(tokenizer, chat_template_kwargs={"prefill": prefill})


def render(tokenizer, prefill: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        chat_request().messages, tokenize=False, add_generation_prompt=True, prefill=prefill
    )
    return tokenizer.encode(text)


def stream(parser, tokenizer, ids, sizes, request, prefill):
    """What vLLM's server sends for these tokens, delta by delta, as (reasoning, content, calls)."""
    from tokenizers.decoders import DecodeStream

    decoder, messages, done = DecodeStream(skip_special_tokens=False), [], 0
    prompt = render(tokenizer, prefill)
    while done < len(ids):
        new = ids[done : done + (sizes.pop() if sizes else 1)]
        done += len(new)
        shown = [one for one in new if one != tokenizer.eos_token_id]
        text = "".join(decoder.step(tokenizer._tokenizer, one) or "" for one in shown)
        message = parser.parse_delta(
            text, new, request, prompt_token_ids=prompt, finished=done == len(ids)
        )
        if message is not None:
            messages.append((message.reasoning, message.content, message.tool_calls))
    return messages


def joined(messages) -> tuple[str, str]:
    return "".join(m[0] or "" for m in messages), "".join(m[1] or "" for m in messages)


pieces = st.sampled_from(
    ["<think>", "</think>", "</thi", "<", ">", " ", "\n", "a", "é", "漢", "1+1", "< think>", "nk>"]
)
outputs = st.builds(
    lambda start, rest: start + "".join(rest),
    st.sampled_from(["", "<think>", "\n<think>\n"]),
    st.lists(pieces, min_size=1, max_size=12),
)


@given(outputs, st.sampled_from(["", OPEN]), st.lists(st.integers(1, 6), max_size=30))
@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_stream_and_whole_agree_with_split(tokenizer, text, prefill, sizes):
    ids, request = tokenizer.encode(text), chat_request()
    expected = split(text, prefilled=bool(prefill))
    whole = make_parser(tokenizer, prefill)
    reasoning, content, _ = whole.parse(text, request, model_output_token_ids=ids)
    assert (reasoning or "", content) == (expected.reasoning, expected.answer)

    live = make_parser(tokenizer, prefill)
    messages = stream(live, tokenizer, ids, list(sizes), request, prefill)
    assert joined(messages) == (expected.reasoning, expected.answer or "")
    assert not any(reasoning and content for reasoning, content, _ in messages[:-1])

    counted = whole.count_reasoning_tokens(ids)
    assert counted == live.count_reasoning_tokens(ids)
    if expected.status is SplitStatus.CLOSED:
        assert tokenizer.decode(ids[:counted]).endswith("</think>")
    else:
        assert counted == (len(ids) if expected.status is SplitStatus.TRUNCATED else 0)


def test_a_prompt_that_closed_the_thought_leaves_only_answer(tokenizer):
    text, request = "plain\n<think>", chat_request()
    prompt, ids = render(tokenizer, NO_THOUGHT), tokenizer.encode(text)
    parser = make_parser(tokenizer, NO_THOUGHT)
    assert parser.is_reasoning_end(prompt)
    assert parser.parse(text, request, model_output_token_ids=ids)[:2] == (None, text)
    assert parser.count_reasoning_tokens(ids) == 0
    live = make_parser(tokenizer, NO_THOUGHT)
    assert joined(stream(live, tokenizer, ids, [], request, NO_THOUGHT)) == ("", text)


@pytest.mark.parametrize("prefill", ["", OPEN])
def test_thoughts_of_other_turns_do_not_end_this_one(tokenizer, prefill):
    messages = [
        {"role": "user", "content": "</think>"},
        {"role": "assistant", "content": "<think>\n1\n</think>\n\n2"},
        {"role": "user", "content": "<think>"},
    ]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, prefill=prefill
    )
    assert not make_parser(tokenizer, prefill).is_reasoning_end(tokenizer.encode(text))


def test_structured_output_starts_after_the_closing_tag(tokenizer):
    parser = make_parser(tokenizer).reasoning_parser
    ids = tokenizer.encode("<|im_start|>user\n</think><|im_end|><think>a</think>{")
    ends = [
        at + 1
        for at in range(len(ids))
        if parser.is_reasoning_end_streaming(ids[: at + 1], ids[at : at + 1])
    ]
    assert [tokenizer.decode(ids[:end])[-9:] for end in ends] == ["\n</think>", "a</think>"]
    assert parser.extract_content_ids(tokenizer.encode("a</think>{")) == tokenizer.encode("{")


def test_special_tags_stay_in_the_text():
    for tags, skips in (("spelled", True), ("token", True), ("special", False)):
        parser = make_parser(make_tokenizer(tags)).reasoning_parser
        assert parser.adjust_request(chat_request()).skip_special_tokens is skips


@pytest.mark.parametrize("size", [1, 2, 7, 200])
def test_tool_calls_follow_a_thought(tokenizer, size):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    request = chat_request(tools=[tool], tool_choice="auto")
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    ids = tokenizer.encode(f"<think>\nadd </thi them\n</think>\n\n{call}<|im_end|>")
    names = {"tool_parser_name": "hermes", "enable_auto_tools": True}
    parser = make_parser(tokenizer, **names)
    messages = stream(parser, tokenizer, ids, [size] * 200, request, "")
    calls = [call.function for message in messages for call in message[2]]
    assert joined(messages)[0] == "add </thi them"
    assert "".join(call.name or "" for call in calls) == "add"
    assert "".join(call.arguments or "" for call in calls).replace(" ", "") == '{"a":1}'


# The real server

RECITED = {
    "think": "<think>\nIs 1 < 2? Yes, 1 </thin 2 é漢.\n</think>\n\nYes.\n",
    "plain": "Hello, no <think> here.",
    "digits": "<think>\nThree.\n</think>\n\n333",
}
GOES_ON = "On and on.\n</think>\n\nDone."  # what follows a prefilled `<think>\n`


def recite(folder: Path) -> None:
    """Train a small Qwen3 to answer each key of RECITED with its text, and save it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            max_position_embeddings=512, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    lessons = [(question, "", text) for question, text in RECITED.items()]
    lessons += [("go on", OPEN, GOES_ON), ("at once", NO_THOUGHT, "At once.")]
    prompts, texts = [], []
    for question, prefill, text in lessons:
        turn = [{"role": "user", "content": question}]
        prompts.append(
            tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True, prefill=prefill
            )
        )
        texts.append(prompts[-1] + text + tokenizer.eos_token)
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in enumerate(prompts):
        labels[row, : len(tokenizer.encode(prompt))] = -100
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is faster on one
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    torch.set_num_threads(threads)
    assert loss.item() < 0.05, f"the model did not learn its texts: loss {loss.item():.3f}"
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx

    for _ in range(240):
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail(f"the server did not start in 240 s:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    import openai

    folder = tmp_path_factory.mktemp("vllm")
    recite(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder / "model"), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-num-seqs", "8", "--stream-interval", "3"]
    command += ["--reasoning-parser-plugin", "thinkgate_serve.vllm_reasoning_parser"]
    command += ["--reasoning-parser", "thinkgate"]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until_up(process, f"http://127.0.0.1:{port}", log)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", timeout=120)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def ask(client, question: str, streamed: bool, max_tokens: int = 200, prefill: str = "", **extra):
    kwargs = {
        "model": "tiny",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "extra_body": {"chat_template_kwargs": {"prefill": prefill}, **extra},
    }
    if not streamed:
        reply = client.chat.completions.create(**kwargs)
        message = reply.choices[0].message
        parts = (getattr(message, "reasoning", None), message.content)
        finish, usage, mixed = reply.choices[0].finish_reason, reply.usage, []
    else:
        deltas, finish, usage = [], None, None
        for chunk in client.chat.completions.create(
            **kwargs, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                deltas.append((getattr(choice.delta, "reasoning", None), choice.delta.content))
                finish = choice.finish_reason or finish
        assert len(deltas) > 3
        parts = tuple("".join(delta[side] or "" for delta in deltas) for side in (0, 1))
        mixed = [delta for delta in deltas[:-1] if delta[0] and delta[1]]
    details = usage.completion_tokens_details
    return SimpleNamespace(
        reasoning=parts[0] or "",
        content=parts[1],
        finish=finish,
        mixed=mixed,
        tokens=usage.completion_tokens,
        reasoning_tokens=details.reasoning_tokens if details else 0,
    )


def tokens_of(text: str) -> int:
    return len(text.encode())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
class TestServer:
    def test_thought_and_answer(self, server, streamed):
        got = ask(server, "think", streamed)
        expected = split(RECITED["think"])
        assert (got.reasoning, got.content) == (expected.reasoning, expected.answer)
        assert (got.finish, got.mixed) == ("stop", [])
        thought = RECITED["think"].partition("</think>")[0] + "</think>"
        assert got.reasoning_tokens == tokens_of(thought)
        assert got.tokens == tokens_of(RECITED["think"]) + 1  # and the end token

    def test_prefilled(self, server, streamed):
        got = ask(server, "go on", streamed, prefill=OPEN)
        assert (got.reasoning, got.content) == ("On and on.", "Done.")
        assert got.reasoning_tokens == tokens_of("On and on.\n</think>")

    def test_truncated(self, server, streamed):
        got = ask(server, "go on", streamed, prefill=OPEN, max_tokens=8)
        assert got.reasoning == "On and o"
        assert not got.content if streamed else got.content is None
        assert (got.finish, got.reasoning_tokens) == ("length", 8)

    def test_no_thought(self, server, streamed):
        got = ask(server, "plain", streamed)
        assert (got.reasoning, got.content) == ("", RECITED["plain"])
        assert got.reasoning_tokens == 0

    def test_thought_closed_by_the_template(self, server, streamed):
        got = ask(server, "at once", streamed, prefill=NO_THOUGHT)
        assert (got.reasoning, got.content, got.reasoning_tokens) == ("", "At once.", 0)

    def test_structured_output_binds_the_answer_only(self, server, streamed):
        got = ask(server, "digits", streamed, structured_outputs={"regex": "\\n\\n[0-9]{2}!"})
        assert got.reasoning == "Three."
        assert got.content == "33!"

    def test_stop_string_delays_the_text_but_not_the_count(self, server, streamed):
        got = ask(server, "think", streamed, stop=["e" * 40])
        assert got.content == "Yes.\n"
        assert got.reasoning_tokens == tokens_of(RECITED["think"].partition("</think>")[0]) + 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_choice_is_split(server):
    reply = server.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "go on"}],
        n=3,
        temperature=0.01,
        max_tokens=200,
        extra_body={"chat_template_kwargs": {"prefill": OPEN}},
    )
    got = [(choice.message.reasoning, choice.message.content) for choice in reply.choices]
    assert got == [("On and on.", "Done.")] * 3
    assert reply.usage.completion_tokens_details.reasoning_tokens == 3 * tokens_of(
        "On and on.\n</think>"
    )
