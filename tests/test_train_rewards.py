"""Rewards: the one splitter and the one verifier, and never a zero for a failed measurement."""

import functools
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkgate.errors import ConfigError, TrainingError
from thinkgate.format import THINK, Tags, split
from thinkgate_train.rewards import REWARDS, build, known, text_of

COMPLETIONS = [
    "<think>1+1=2</think>2",
    "<think></think>3",
    "<think>so \\boxed{2}",
    "2",
    "<think>2</think>",
    "2 is what it is</think>2",
]
ASKS_A_MODEL = {"llm_judge", "reward_model"}
NEEDED: dict[str, dict[str, Any]] = {
    "cosine_length": {"max_length": 20},
    "soft_overlong": {"max_completion_length": 20, "cache": 8},
}
RANGES: dict[str, tuple[float, float]] = {
    "correctness": (0, 1),
    "second_opinion": (0, 1),
    "format": (0, 1),
    "tag_count": (0, 1),
    "length_target": (-math.inf, 0),
    "unique_characters": (0, math.inf),
    "cosine_length": (-1, 1),
    "repetition_penalty": (-1, 0),
    "soft_overlong": (-1, 0),
    "reasoning_steps": (0, 1),
    "language_consistency": (0, 1),
    "random": (0, 1),
}


TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "2", " so\n1. "]),
        max_size=8,
    ).map("".join),
)


def scores(
    name: str,
    completions: list[Any],
    args: dict[str, Any] | None = None,
    prefilled: bool = False,
    tags: Tags = THINK,
    **columns: Any,
) -> list[float | None]:
    splitter = functools.partial(split, prefilled=prefilled, tags=tags)
    reward = build(name, splitter, NEEDED.get(name, {}) if args is None else args)
    ids = [list(text_of(completion).encode()) for completion in completions]
    prompts = ["?"] * len(completions)
    return reward(
        **{"prompts": prompts, "completions": completions, "completion_ids": ids} | columns
    )


def as_messages(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


# What ships


def test_correctness_reads_the_answer_part_only() -> None:
    assert scores("correctness", COMPLETIONS, gold=["2"] * 6) == [1, 0, 0, 1, 0, 0]


def test_format_wants_a_closed_thought_and_an_answer() -> None:
    assert scores("format", COMPLETIONS) == [1, 1, 0, 0, 0, 0]
    assert scores("format", COMPLETIONS[-1:], prefilled=True) == [1]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("<answer>2</answer>", 1),
        ("\n<answer>\n2\n</answer>\n", 1),
        ("2", 0),
        ("<answer>2", 0),
        ("2</answer>", 0),
        ("<answer> </answer>", 0),
        ("so <answer>2</answer>", 0),
        ("<answer>1</answer><answer>2</answer>", 0),
        ("<answer>", 0),
    ],
)
def test_format_with_answer_tags(answer: str, value: float) -> None:
    completion = f"<think>1+1</think>{answer}"
    assert scores("format", [completion], {"answer_tags": True}) == [value]
    assert scores("format", [answer], {"answer_tags": True}) == [0]


@pytest.mark.parametrize(
    ("completion", "prefilled", "value"),
    [
        ("<think>a</think><answer>b</answer>", False, 1),
        ("<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", False, 1),
        ("a</think><answer>b</answer>", True, 1),
        ("a</think><answer>b</answer>", False, 0.25),
        ("<think>a</think><answer>b", False, 0.75),
        ("<think>a</think>b", False, 0.5),
        ("<think>a", False, 0.25),
        ("<think>a <answer>b</answer>", False, 0.25),
        ("<think>a<think></think></think>b", False, 0),
        ("", True, 0.25),
        ("", False, 0),
    ],
)
def test_tag_count(completion: str, prefilled: bool, value: float) -> None:
    assert scores("tag_count", [completion], prefilled=prefilled) == [value]


def test_other_tags() -> None:
    tags = Tags("<reasoning>", "</reasoning>")
    texts = ["<reasoning>a</reasoning>b", "<think>a</think>b"]
    assert scores("format", texts, tags=tags) == [1, 0]
    assert scores("tag_count", texts, tags=tags) == [0.5, 0]


@pytest.mark.parametrize(
    ("args", "values"),
    [
        ({}, [-47, 0, -10]),
        ({"target": 3}, [0, -47, -57]),
        ({"target": 50, "scale": 100}, [-0.47, 0, -0.1]),
        ({"target": 2, "unit": "words"}, [-1, -1, -1]),
        ({"target": 61, "unit": "tokens"}, [-58, -11, -59]),
    ],
)
def test_length_target(args: dict[str, Any], values: list[float]) -> None:
    assert scores("length_target", ["abc", "x" * 50, "ü" * 60], args) == values


def test_unique_characters() -> None:
    assert scores("unique_characters", ["", "aab", "abcd"]) == [0, 2, 4]
    assert scores("unique_characters", ["", "aab", "abcd"], {"normalise": True}) == [0, 2 / 3, 1]


def test_cosine_length_favours_short_right_and_long_wrong_answers() -> None:
    ids = [[0] * n for n in (0, 50, 100, 400, 0, 50, 100, 400)]
    answers = ["2"] * 4 + ["3"] * 4
    got = scores("cosine_length", answers, {"max_length": 100}, gold=["2"] * 8, completion_ids=ids)
    assert got == pytest.approx([1, 0.75, 0.5, 0.5, -1, -0.75, -0.5, -0.5])
    hard = scores(
        "cosine_length",
        answers,
        {"max_length": 100, "exceeded": -10},
        gold=["2"] * 8,
        completion_ids=ids,
    )
    assert hard == pytest.approx([1, 0.75, -10, -10, -1, -0.75, -10, -10])
    assert scores("cosine_length", ["2"], gold=[""]) == [None]


def test_repetition_and_overlong_follow_their_papers() -> None:
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [], [1] * 12, [1] * 14, [1] * 16, [1] * 20, [1] * 99]
    said = [""] * len(ids)
    repeated = scores("repetition_penalty", said, {"ngram_size": 2}, completion_ids=ids)
    assert repeated[:3] == [0, -0.75, 0]
    overlong = scores("soft_overlong", said, completion_ids=ids)
    assert overlong == [0, 0, 0, 0, -0.25, -0.5, -1, -1]


@pytest.mark.parametrize(
    ("thought", "count"),
    [
        ("Step 1: a\nStep 2: b\nStep 3: c", 3),
        ("First, we add.\nSecond, we carry.\nFinally, we stop.", 3),
        ("First, we add.\nFinally, done.", 2),
        ("so\n1. add\n2. carry", 2),
        ("- add\n* carry\n• stop", 3),
        ("8+7=15\n-3 is left, 1.5 of it", 0),
        ("The first, second and last", 1),
        ("plain text", 0),
    ],
)
def test_reasoning_steps_are_counted_in_the_thought(thought: str, count: int) -> None:
    said = [f"<think>{thought}</think>1. a\n2. b\n3. c", f"<think>{thought}"]
    assert scores("reasoning_steps", said) == [min(1.0, count / 3)] * 2
    assert scores("reasoning_steps", [thought]) == [0]  # an answer without a thought


@pytest.mark.parametrize(
    ("language", "thought", "value"),
    [
        ("en", "we add seven and eight", 1),
        ("en", "we add 因为 seven", 3 / 5),
        ("en", "Привет world", 1 / 2),
        ("en", "", 1),
        ("en", "8+7=15", 1),
        ("zh", "因为 x 和 $\\frac{y}{2}$", 1),
        ("zh", "因为 because", 2 / 3),
        ("zh", "```\nprint(total)\n``` 因为 `total`", 1),
        ("ja", "コーヒーを飲む", 1),
        ("ja", "コーヒー please", 4 / 5),
        ("ru", "Сложим числа together", 2 / 3),
        ("th", "สวัสดี", 1),
        ("hi", "नमस्ते दुनिया", 1),
        ("fr", "l'été naïve", 1),
    ],
)
def test_language_consistency(language: str, thought: str, value: float) -> None:
    said = [f"<think>{thought}</think>答 answer ответ"]
    assert scores("language_consistency", said, {"language": language}) == [pytest.approx(value)]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("degenerate", ["\\[" * 60_000, "`" * 99_999, "`a" * 50_001, "\\" * 99_999])
def test_a_degenerate_thought_costs_no_more_than_another(degenerate: str) -> None:
    for name in ("language_consistency", "reasoning_steps", "tag_count", "format"):
        assert 0 <= (scores(name, [f"<think>{degenerate}"])[0] or 0) <= 1


def test_random_is_seeded_and_blind() -> None:
    one, other = (scores("random", texts) for texts in (["a"] * 500, COMPLETIONS[:5] * 100))
    assert one == other
    assert 200 < sum(v or 0 for v in one) < 300
    assert scores("random", ["a"] * 500, {"seed": 1}) != one
    assert set(scores("random", ["a"] * 50, {"p": 1.0})) == {1.0}


def test_processes_of_a_run_toss_their_own_coins(monkeypatch: pytest.MonkeyPatch) -> None:
    first = scores("random", ["a"] * 100)
    monkeypatch.setenv("RANK", "1")
    assert scores("random", ["a"] * 100) != first


def test_the_second_opinion_is_math_verifys_own() -> None:
    said = ["<think>3</think>\\boxed{2}", "<think>2</think>3", "<think>2", "<think></think>red"]
    assert scores("second_opinion", said, gold=["2"] * 3 + ["red"]) == [1, 0, 0, None]


# What they all hold to


@pytest.mark.parametrize("prefilled", [False, True])
@pytest.mark.parametrize("name", sorted(RANGES))
def test_ranges_shapes_and_order(name: str, prefilled: bool) -> None:
    splitter = functools.partial(split, prefilled=prefilled)
    reward = build(name, splitter, NEEDED.get(name, {}))

    @settings(max_examples=8 if name == "second_opinion" else 40)
    @given(texts=st.lists(TEXTS, min_size=1, max_size=6), data=st.data())
    def holds(texts: list[str], data: st.DataObject) -> None:
        def ask(said: list[str], shape: Callable[[list[str]], Any] = list) -> list[float | None]:
            ids = [list(text.encode()) for text in said]
            return reward(completions=shape(said), completion_ids=ids, gold=["2"] * len(said))

        got = ask(texts)
        low, high = RANGES[name]
        assert all(value is not None and low <= value <= high for value in got)
        if name != "random":  # the one that is blind to the texts
            assert ask(texts, as_messages) == got
            order = data.draw(st.permutations(range(len(texts))))
            assert ask([texts[i] for i in order]) == [got[i] for i in order]

    holds()


@pytest.mark.parametrize("name", ["correctness", "second_opinion", "cosine_length"])
def test_none_is_for_what_cannot_be_measured(name: str) -> None:
    golds = ["2", "", None]
    got = scores(name, ["<think></think>2"] * 3, gold=golds)
    assert got[0] is not None and got[1:] == [None, None]
    with pytest.raises(TrainingError, match=f"'{name}' needs the column 'gold'.*solution"):
        scores(name, ["2"], solution=["2"])


@pytest.mark.parametrize("name", sorted(REWARDS.keys() - ASKS_A_MODEL))
def test_the_name_is_what_trl_logs(name: str) -> None:
    assert REWARDS[name](split, **NEEDED.get(name, {})).__name__ == name


def test_a_thought_that_trl_took_apart_is_put_back() -> None:
    turns = [
        {"role": "assistant", "reasoning_content": "1+1=2", "content": "2"},
        {"role": "assistant", "thinking": "1+1=", "content": ""},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>a</think>2"}]},
        {"content": "<think>a</think>2"},
        {"role": "assistant", "content": None},
    ]
    assert [text_of([turn]) for turn in turns] == [
        "<think>1+1=2</think>2",
        "<think>1+1=",
        "<think>a</think>2",
        "<think>a</think>2",
        "",
    ]
    assert text_of([turns[0], {"role": "tool", "content": "99"}, {"content": "!"}]) == (
        "<think>1+1=2</think>2!"
    )
    for prefilled in (False, True):
        assert scores("format", [[turn] for turn in turns[:3]], prefilled=prefilled) == [1, 0, 1]
    tags = Tags("<reasoning>", "</reasoning>")
    assert scores("format", [[turns[0]]], tags=tags) == [1]


# Mistakes in a recipe


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("corectness", {}, "unknown reward 'corectness'; did you mean 'correctness'?"),
        ("zzz", {}, "unknown reward 'zzz'; known: correctness, cosine_length, "),
        ("code", {}, "needs a sandbox .* module:function"),
        ("length_target", {"traget": 3}, "unknown argument 'traget'; it takes target, unit, s"),
        ("length_target", {"unit": "pages"}, "'unit' is 'pages': .*'words'"),
        ("length_target", {"target": "many"}, "'target' is 'many': .*it takes target, unit, scale"),
        ("length_target", {"scale": 0}, "'scale' is 0: .*greater than 0"),
        ("soft_overlong", {"cache": 4}, "'max_completion_length' is missing .it takes max_comple"),
        ("soft_overlong", {"cache": 9, "max_completion_length": 4}, "more than the max_completion"),
        ("cosine_length", {"max_length": 9, "min_value_wrong": 0}, "above its max_value"),
        ("repetition_penalty", {"max_penalty": 1}, "'max_penalty' is 1: "),
        ("tag_count", {"x": 1}, "unknown argument 'x'; it takes no arguments"),
        ("language_consistency", {"language": "eng"}, "'language' is 'eng'; did you mean 'en'"),
        ("random", {"p": 2}, "'p' is 2"),
        ("llm_judge", {"model": "m"}, "reward 'llm_judge': 'base_url' is missing"),
        ("reward_model", {"pth": "m"}, "reward 'reward_model': "),
        (":f", {}, "write it as module:function"),
        ("no_such_module_x:f", {}, "no module 'no_such_module_x'"),
        ("json.no_such:f", {}, "no module 'json.no_such'"),
        ("json:lods", {}, "json has no 'lods'; did you mean 'loads'?"),
        ("json:decoder", {}, "'decoder' is module, not a function"),
        ("/no/such/file.py:f", {}, "no such file /no/such/file.py"),
        ("json:loads", {"completions": "lists"}, "'completions' is 'lists'"),
    ],
)
def test_a_mistake_is_one_sentence(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, split, args)
    assert re.search(said, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_known_imports_nothing_of_the_users() -> None:
    for name in (*REWARDS, "surely_no_module:f", "nowhere/none.py:f"):
        known(name)
    with pytest.raises(ConfigError, match="did you mean 'format'"):
        known("fromat")
    assert "surely_no_module" not in sys.modules


def test_the_second_opinion_can_look_at_a_part_of_the_batch() -> None:
    reward = build("second_opinion", split, {"every": 3})
    completions = ["<think></think>4"] * 7
    assert reward(completions=completions, gold=["4"] * 7) == [
        1.0,
        None,
        None,
        1.0,
        None,
        None,
        1.0,
    ]
