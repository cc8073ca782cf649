"""Reward functions for GRPO, by name. Each reads a completion through the one splitter.

A reward of None means "could not be measured": TRL leaves it out of the sum. A failed measurement
is never 0 and never 1.

Some of these ship with TRL too. Where a token count is all they read, TRL's are used; where they
look for a thought or grade an answer, ours go through the splitter and the verifier, which know
prefilled prompts, other tags and truncation.
"""

import contextlib
import inspect
import math
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model

from thinkgate.answers import Verdict, check_many
from thinkgate.answers import second_opinion as ask_math_verify
from thinkgate.config import Config, nearest, parse
from thinkgate.errors import ConfigError, MissingDependencyError
from thinkgate.format import SplitStatus
from thinkgate_train.rewards.function import (
    RewardFunction,
    Splitter,
    column,
    tags_of,
    text_of,
    user_reward,
)
from thinkgate_train.rewards.judges import llm_judge
from thinkgate_train.rewards.model import reward_model

__all__ = ["REWARDS", "RewardFunction", "Splitter", "build", "known", "text_of"]

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

SCORES: dict[Verdict, float | None] = {
    Verdict.CORRECT: 1.0,
    Verdict.WRONG: 0.0,
    Verdict.NO_ANSWER: 0.0,
    Verdict.BAD_GOLD: None,
    Verdict.ERROR: None,
}


def build(name: str, splitter: Splitter, args: Mapping[str, Any]) -> RewardFunction:
    """The reward a recipe names: a shipped one, or the user's `module:function`.

    ConfigError, in one sentence, for what is unknown, missing or of the wrong type.
    """
    known(name)
    if ":" in name:
        return user_reward(name, args, tags_of(splitter))
    factory = REWARDS[name]
    return factory(splitter, **_checked(name, factory, args))


def known(name: str) -> None:
    """ConfigError unless `name` is a shipped reward or reads `module:function`; imports nothing."""
    if ":" in name or name in REWARDS:
        return
    if name in ("code", "code_execution", "code_reward"):
        raise ConfigError(
            f"reward '{name}' does not ship, because running a model's code needs a sandbox that "
            "a Python package cannot be; call yours from a module:function reward"
        )
    raise ConfigError(f"unknown reward '{name}'; {nearest(name, REWARDS)}")


def _checked(name: str, factory: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """`args` as the factory's annotations want them."""
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(args)  # it checks them itself
    hints = get_type_hints(factory, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters
    }
    takes = f"it takes {', '.join(fields) or 'no arguments'}"
    for key in args:
        if key not in fields:
            raise ConfigError(f"reward '{name}': unknown argument '{key}'; {takes}")
    try:
        parsed = parse(create_model(name, __base__=Config, **fields), args, f"reward '{name}'")
    except ConfigError as error:
        raise ConfigError(f"{error} ({takes})") from error
    return {field: getattr(parsed, field) for field in fields}


def correctness(splitter: Splitter, timeout: Annotated[float, Field(gt=0)] = 5.0) -> RewardFunction:
    """1 where the answer part is correct by `thinkgate.answers.check`, else 0.

    None where the gold is missing or unreadable, or the verifier overran `timeout` seconds.
    The accuracy reward of DeepSeek-R1 (arXiv 2501.12948, section 2.2.2).
    """

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        verdicts = _verdicts("correctness", splitter, completions, columns, timeout)
        return [SCORES[verdict] for verdict in verdicts]

    return _named("correctness", reward)


def second_opinion(
    splitter: Splitter, timeout: Annotated[float, Field(gt=0)] = 5.0, every: Positive = 1
) -> RewardFunction:
    """1 where math-verify alone, on the raw answer part, says correct, else 0.

    For watching, with weight 0: it shares no code with `correctness`, so where the two drift apart
    the reward is being gamed. None for golds math-verify cannot read, such as words, and for all
    but every so-manieth completion of a batch: it costs milliseconds where ours costs microseconds.
    math-verify loads beside what else a run prepares, so that no step waits for it.
    """
    tags = tags_of(splitter)
    threading.Thread(target=_load_math_verify, daemon=True).start()

    def opinion(completion: Any, gold: Any) -> float | None:
        answer = splitter(text_of(completion, tags)).answer
        return SCORES[ask_math_verify(answer, gold, timeout=timeout)]

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        pairs = zip(completions, _golds("second_opinion", columns), strict=True)
        return [None if number % every else opinion(*pair) for number, pair in enumerate(pairs)]

    return _named("second_opinion", reward)


def format(splitter: Splitter, answer_tags: bool = False) -> RewardFunction:
    """1 for a closed thought followed by an answer, else 0.

    With `answer_tags` the answer must be one `<answer>…</answer>` with something in it and nothing
    around it. The format reward of DeepSeek-R1 (arXiv 2501.12948, section 2.2.2); TRL's
    `think_format_reward` does not know prefilled prompts and takes a thought without an answer.
    """

    def score(text: str) -> float:
        split = splitter(text)
        answer = (split.answer or "").strip()
        if answer_tags:
            inside = answer.removeprefix("<answer>").removesuffix("</answer>")
            # Both were there if both went, and no other is inside.
            whole = len(answer) - len(inside) == len("<answer></answer>")
            answer = inside.strip() if whole and "answer>" not in inside else ""
        return float(split.status is SplitStatus.CLOSED and bool(answer))

    return _by_text("format", splitter, score)


def tag_count(splitter: Splitter) -> RewardFunction:
    """0.25 for each of `<think>`, `</think>`, `<answer>`, `</answer>` in its place and there once.

    0 to 1; a way to `format` with `answer_tags` in steps. The opening tag counts as there where
    the prompt has opened the thought. After `tag_count_reward` of open-r1
    (github.com/huggingface/open-r1), with the run's tags and without its line breaks.
    """
    tags = tags_of(splitter)

    def score(text: str) -> float:
        split = splitter(text)
        answer = (split.answer or "").strip()
        placed = (
            split.status is not SplitStatus.UNTAGGED and text.count(tags.open) <= 1,
            split.status is SplitStatus.CLOSED and text.count(tags.close) == 1,
            answer.startswith("<answer>") and text.count("<answer>") == 1,
            answer.endswith("</answer>") and text.count("</answer>") == 1,
        )
        return sum(placed) / 4

    return _by_text("tag_count", splitter, score)


def length_target(
    splitter: Splitter,
    target: Annotated[int, Field(ge=0)] = 50,
    unit: Literal["characters", "tokens", "words"] = "characters",
    scale: Annotated[float, Field(gt=0)] = 1.0,
) -> RewardFunction:
    """-|target - n| / scale, n the length of the whole completion; 0 at best, no lower bound.

    The length reward of the tutorials (`-abs(50 - len(c))`). A `scale` of the size of the target
    brings it near the range of other rewards. Tokens include the end-of-turn token.
    """

    def measure(completion: Any, ids: Sequence[int]) -> float:
        if unit == "tokens":
            return -abs(target - len(ids)) / scale
        text = text_of(completion, tags)
        return -abs(target - len(text if unit == "characters" else text.split())) / scale

    tags = tags_of(splitter)

    def reward(
        completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] = (), **_: Any
    ) -> list[float | None]:
        ids = completion_ids if unit == "tokens" else [()] * len(completions)
        return [measure(c, i) for c, i in zip(completions, ids, strict=True)]

    return _named("length_target", reward)


def unique_characters(splitter: Splitter, normalise: bool = False) -> RewardFunction:
    """How many different characters the completion has; with `normalise` divided by its length.

    0 and up, or 0 to 1. The first reward of the tutorials and of TRL's own examples: no measure
    of quality, but it moves within minutes.
    """

    def score(text: str) -> float:
        return len(set(text)) / (max(1, len(text)) if normalise else 1)

    return _by_text("unique_characters", splitter, score)


def cosine_length(
    splitter: Splitter,
    max_length: Positive,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    exceeded: float | None = None,
    timeout: Annotated[float, Field(gt=0)] = 5.0,
) -> RewardFunction:
    """Correctness scaled by length: l + (s - l)(1 + cos(pi n / `max_length`)) / 2 at n tokens.

    From s when short to l when long: max to min_value_correct, so that short is better, but min to
    max_value_wrong, since thinking longer may help where the answer was wrong. From max_length on
    it is `exceeded` (the paper's -10), or stays at l. None where there is no verdict.
    Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373), C.1. TRL's
    reads the answer out of the thought too; ours grades the answer part by the one verifier.
    """
    if min_value_correct > max_value_correct or min_value_wrong > max_value_wrong:
        raise ConfigError("reward 'cosine_length': a min_value is above its max_value")
    ends = {1.0: (max_value_correct, min_value_correct), 0.0: (min_value_wrong, max_value_wrong)}

    def value(correct: float, length: int) -> float:
        if exceeded is not None and length >= max_length:
            return exceeded
        short, long = ends[correct]
        return long + (short - long) * (1 + math.cos(math.pi * min(1, length / max_length))) / 2

    def reward(
        completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float | None]:
        verdicts = _verdicts("cosine_length", splitter, completions, columns, timeout)
        return [
            None if (correct := SCORES[verdict]) is None else value(correct, len(ids))
            for verdict, ids in zip(verdicts, completion_ids, strict=True)
        ]

    return _named("cosine_length", reward)


def repetition_penalty(
    splitter: Splitter,
    ngram_size: Positive = 3,
    max_penalty: Annotated[float, Field(le=0)] = -1.0,
) -> RewardFunction:
    """(1 - different / all n-grams of tokens) * `max_penalty`: from max_penalty to 0.

    TRL's `get_repetition_penalty_reward`, after arXiv 2502.03373, C.2. Where tokens are letters or
    bytes, as in the quickstart, take an `ngram_size` of several words.
    """
    from trl.rewards import get_repetition_penalty_reward

    return _named("repetition_penalty", get_repetition_penalty_reward(ngram_size, max_penalty))


def soft_overlong(
    splitter: Splitter, max_completion_length: Positive, cache: Positive
) -> RewardFunction:
    """0 up to `max_completion_length - cache` tokens, falling to -1 at max_completion_length.

    TRL's `get_soft_overlong_punishment`, equation 13 of DAPO (arXiv 2503.14476).
    """
    if cache > max_completion_length:
        raise ConfigError(
            f"reward 'soft_overlong': 'cache' is {cache}, more than the max_completion_length of "
            f"{max_completion_length}; DAPO takes a fifth of it"
        )
    from trl.rewards import get_soft_overlong_punishment

    return _named("soft_overlong", get_soft_overlong_punishment(max_completion_length, cache))


def reasoning_steps(splitter: Splitter, steps: Positive = 3) -> RewardFunction:
    """min(1, marks of steps in the thought / `steps`): numbered lines, bullets, "First,", "Next,".

    After `reasoning_steps_reward` of open-r1, which reads the answer too and sees a numbered line
    only where the text begins. It rewards the look of a step, so watch it beside `correctness`.
    """
    import regex

    marks = regex.compile(
        r"^[ \t]*(?:step[ \t]+\d+[:.)]|\d+[.)](?=\s)|[-*•](?=\s))|\b(?:First|Second|Next|Finally),",
        regex.MULTILINE | regex.IGNORECASE,
    )

    def score(text: str) -> float:
        return min(1.0, len(marks.findall(splitter(text).reasoning)) / steps)

    return _by_text("reasoning_steps", splitter, score)


SCRIPTS = {
    "Latin": "en de fr es it pt nl pl cs sk sl hr ro hu fi sv da no is et lv lt sq tr az vi id ms",
    "Cyrillic": "ru uk be bg mk kk ky mn",
    "Han": "zh",
    "Han Hiragana Katakana": "ja",
    "Hangul": "ko",
    "Arabic": "ar fa ur",
    "Hebrew": "he",
    "Greek": "el",
    "Devanagari": "hi mr ne",
    "Bengali": "bn",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Georgian": "ka",
    "Armenian": "hy",
}
"""Unicode scripts a language is written in. Serbian and other languages of two scripts are not
here: they could not be told from their neighbours."""

SCRIPT_OF = {code: script for script, codes in SCRIPTS.items() for code in codes.split()}


def language_consistency(
    splitter: Splitter, language: str = "en", on: Literal["reasoning", "completion"] = "reasoning"
) -> RewardFunction:
    """The share of words in `language` among the words of the thought, 0 to 1.

    DeepSeek-R1 (arXiv 2501.12948, section 2.3.2). A word counts by its Unicode script, so Chinese
    in an English thought shows and French does not: word for word, no light library tells Latin
    languages apart. Code, LaTeX commands, digits and single letters are of no language; scripts
    without spaces count by character. A thought without words mixes nothing: 1.
    """
    if language not in SCRIPT_OF:
        raise ConfigError(
            f"reward 'language_consistency': 'language' is '{language}'; "
            f"{nearest(language, SCRIPT_OF)}"
        )
    import regex

    # scx: the scripts a letter is used in; the Japanese ー is of no script, but used in two.
    unspaced, own = (
        "".join(rf"\p{{scx={script}}}" for script in scripts.split())
        for scripts in ("Han Hiragana Katakana Thai Lao Khmer Myanmar", SCRIPT_OF[language])
    )
    words = regex.compile(
        rf"[\p{{L}}&&[{unspaced}]]\p{{M}}*|[[\p{{L}}\p{{M}}]--[{unspaced}]]{{2,}}", regex.V1
    )
    in_language = regex.compile(rf"[{own}\p{{M}}]+")
    no_language = regex.compile(r"`[^`\n]*`|\\[A-Za-z]+")

    def score(text: str) -> float:
        read = splitter(text).reasoning if on == "reasoning" else text
        prose = no_language.sub(" ", " ".join(read.split("```")[::2]))
        found = words.findall(prose)
        return sum(map(bool, map(in_language.fullmatch, found))) / len(found) if found else 1.0

    return _by_text("language_consistency", splitter, score)


def coin(splitter: Splitter, p: Share = 0.5, seed: int = 0) -> RewardFunction:
    """1 with probability `p`, else 0, whatever the completion says.

    The control of `--random-reward`: what still improves under it is not learned from the reward
    (Shao et al. 2025, "Spurious Rewards", arXiv 2506.10947).
    """
    # Processes of one run must not all toss the same coins.
    draw = random.Random(f"{seed}/{os.environ.get('RANK', '0')}")

    def reward(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [float(draw.random() < p) for _ in completions]

    return _named("random", reward)


REWARDS: dict[str, Callable[..., RewardFunction]] = {
    "correctness": correctness,
    "format": format,
    "tag_count": tag_count,
    "length_target": length_target,
    "unique_characters": unique_characters,
    "cosine_length": cosine_length,
    "repetition_penalty": repetition_penalty,
    "soft_overlong": soft_overlong,
    "reasoning_steps": reasoning_steps,
    "language_consistency": language_consistency,
    "random": coin,
    "second_opinion": second_opinion,
    "llm_judge": llm_judge,
    "reward_model": reward_model,
}


def _load_math_verify() -> None:
    with contextlib.suppress(MissingDependencyError):  # said where it is needed
        ask_math_verify("1", "1")


def _verdicts(
    name: str,
    splitter: Splitter,
    completions: Sequence[Any],
    columns: Mapping[str, Any],
    timeout: float,
) -> list[Verdict]:
    tags = tags_of(splitter)
    answers = [splitter(text_of(completion, tags)).answer for completion in completions]
    return check_many(zip(answers, _golds(name, columns), strict=True), timeout=timeout)


def _golds(name: str, columns: Mapping[str, Any]) -> list[Any]:
    """The golds; "" for none, as in mixed data, which the verifiers call a BAD_GOLD."""
    return ["" if gold is None else gold for gold in column("gold", name, columns)]


def _by_text(name: str, splitter: Splitter, score: Callable[[str], float]) -> RewardFunction:
    tags = tags_of(splitter)

    def reward(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [score(text_of(completion, tags)) for completion in completions]

    return _named(name, reward)


def _named(name: str, reward: Any) -> RewardFunction:
    """TRL logs a reward under its `__name__`."""
    reward.__name__ = name
    return reward
