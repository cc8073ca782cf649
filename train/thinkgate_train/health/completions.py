"""What is seen of rollouts while a run trains: the shape of each batch, and `completions.jsonl`.

Wraps reward functions, since that is where a trainer shows its completions. A row of the file has
`step`, `prompt`, `completion`, its `reasoning`, `answer` and `status`, `rewards` by name, their
weighted sum `reward`, and `gold` where the data has one. Does not know what is healthy.
"""

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkgate.format import Split, SplitStatus
from thinkgate.records import write_row
from thinkgate_train.rewards.function import RewardFunction, Splitter, tags_of, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CompletionsLog", "kept_lines"]

ROWS_PER_STEP = 8
"""Rollouts logged of a step; whole groups, so a larger group makes it more."""
LONGEST = 20_000
"""Characters of a text that are kept."""
THIN_EVERY = 6 * 2**20
"""Bytes after which only every other step is logged, then every fourth, and so on."""
LARGEST_FILE = 48 * 2**20

Log = Callable[[str, float], None]


class CompletionsLog:
    """Sees every batch through the reward functions it wraps; `file` None: writes nothing."""

    def __init__(self, file: Path | None, weights: Sequence[float]) -> None:
        self.training = True
        """False while the trainer evaluates: held-out rollouts are not logged."""
        self._file = file
        self._weights = weights
        self._last_step = -(2**62)
        self._names: list[str] = []
        self._scores: dict[int, list[float | None]] = {}

    def observe(
        self,
        rewards: Sequence[RewardFunction],
        splitter: Splitter,
        tokenizer: "PreTrainedTokenizerBase",
    ) -> list[RewardFunction]:
        """The same functions under the same names, async ones still async. The first logs what the
        batch looks like, the last to answer closes the batch."""
        self._names = _unique([_name(reward) for reward in rewards])
        tags = tags_of(splitter)

        def begin(index: int, given: dict[str, Any]) -> None:
            log = given.get("log_metric")
            if index == 0 and log is not None:
                texts = [text_of(c, tags) for c in given["completions"]]
                _log_shape(texts, [splitter(text) for text in texts], tags.close, tokenizer, log)

        def end(index: int, given: dict[str, Any], values: list[float | None]) -> None:
            if index in self._scores:  # the batch before was never finished
                self._scores.clear()
            self._scores[index] = [None if v is None or math.isnan(v) else float(v) for v in values]
            if len(self._scores) == len(rewards):
                scores, self._scores = self._scores, {}
                texts = [text_of(c, tags) for c in given["completions"]]
                self._close([scores[i] for i in range(len(rewards))], texts, splitter, given)

        return [
            _wrapped(r, functools.partial(begin, i), functools.partial(end, i))
            for i, r in enumerate(rewards)
        ]

    def trim(self, step: int) -> None:
        """On resume: forget the rollouts after `step`."""
        if self._file is None or not self._file.is_file():
            return
        partial = self._file.with_name(f".{self._file.name}.partial")
        with partial.open("w", encoding="utf-8") as sink:
            for line, row in kept_lines(self._file, step):
                sink.write(line)
                self._last_step = row["step"]
        partial.replace(self._file)

    def _close(
        self,
        scores: list[list[float | None]],
        texts: list[str],
        splitter: Splitter,
        given: dict[str, Any],
    ) -> None:
        if not self.training:
            return
        totals = self._totals(scores)
        prompts = [_text(p) for p in given.get("prompts", [""] * len(texts))]
        groups = [[i for i, _ in g] for _, g in groupby(enumerate(prompts), lambda pair: pair[1])]
        log = given.get("log_metric")
        compared = [[totals[i] for i in group] for group in groups if len(group) > 1]
        if log is not None and compared and totals.count(None) < len(totals):
            log("zero_variance", sum(map(_equal, compared)) / len(compared))
        state = given.get("trainer_state")
        step = state.global_step + 1 if state is not None else 0
        if self._file is None or step < self._last_step + self._stride():
            return
        self._last_step = step
        golds = given.get("gold", [None] * len(texts))
        with self._file.open("a", encoding="utf-8") as sink:
            for i in _whole_groups(groups):
                rewards = {name: s[i] for name, s in zip(self._names, scores, strict=True)}
                row = _row(step, prompts[i], texts[i], splitter(texts[i]), rewards, totals[i])
                write_row(row | ({} if golds[i] is None else {"gold": golds[i]}), sink)

    def _totals(self, scores: list[list[float | None]]) -> list[float | None]:
        """The weighted sums that are optimised. None where no function gave a number; all of them
        None where a reward model, which is not seen here, adds to the sum."""
        if len(self._weights) != len(scores):
            return [None] * len(scores[0])
        rows = list(zip(*scores, strict=True))
        pairs = [
            [(w, v) for w, v in zip(self._weights, r, strict=True) if v is not None] for r in rows
        ]
        return [sum(w * v for w, v in pair) if pair else None for pair in pairs]

    def _stride(self) -> int:
        assert self._file is not None
        size = self._file.stat().st_size if self._file.is_file() else 0
        return 2 ** (size // THIN_EVERY) if size < LARGEST_FILE else 2**62


def kept_lines(file: Path, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, row) for the rows of a run's JSONL file up to `step`. A half-written last line, which
    a killed run leaves, is dropped."""
    with file.open(encoding="utf-8") as source:
        for line in source:
            if not line.endswith("\n"):
                return
            row = json.loads(line)
            if row["step"] <= step:
                yield line, row


def _wrapped(
    reward: RewardFunction,
    begin: Callable[[dict[str, Any]], None],
    end: Callable[[dict[str, Any], list[float | None]], None],
) -> RewardFunction:
    call: Any = reward
    name = _name(reward)

    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__):

        async def waiting(**given: Any) -> list[float | None]:
            begin(given)
            values = await call(**given)
            end(given, values)
            return values

        watching: Any = waiting
    else:

        def plain(**given: Any) -> list[float | None]:
            begin(given)
            values = call(**given)
            end(given, values)
            return values

        watching = plain
    watching.__name__ = name
    return watching


def _log_shape(
    texts: list[str],
    splits: list[Split],
    close: str,
    tokenizer: "PreTrainedTokenizerBase",
    log: Log,
) -> None:
    """Means over the batch: lengths of the parts in tokens, and shares of the ways to end."""
    count = len(splits)
    parts = [s.reasoning for s in splits] + [s.answer or "" for s in splits]
    encoded: Any = tokenizer(parts, add_special_tokens=False)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    untagged = [s.status is SplitStatus.UNTAGGED for s in splits]
    log("thinking_tokens", sum(lengths[:count]) / count)
    log("answer_tokens", sum(lengths[count:]) / count)
    log("step_share", sum(bool(s.reasoning.strip()) for s in splits) / count)
    log("truncated", sum(s.status is SplitStatus.TRUNCATED for s in splits) / count)
    log("untagged", sum(untagged) / count)
    # They close what they never opened: the prompt opened it, and the splitter was not told.
    stray = [tag and close in text for tag, text in zip(untagged, texts, strict=True)]
    log("unopened", sum(stray) / count)


def _whole_groups(groups: list[list[int]]) -> list[int]:
    chosen = list(groups[0])
    for group in groups[1:]:
        if len(chosen) + len(group) > ROWS_PER_STEP:
            break
        chosen += group
    return chosen


def _row(
    step: int,
    prompt: str,
    text: str,
    split: Split,
    rewards: dict[str, float | None],
    total: float | None,
) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": _clip(prompt),
        "completion": _clip(text),
        "reasoning": _clip(split.reasoning),
        "answer": None if split.answer is None else _clip(split.answer),
        "status": split.status.value,
        "rewards": rewards,
        "reward": total,
    }


def _equal(values: list[float | None]) -> bool:
    """Whether a group gives no gradient. TRL's own share compares float32 deviations with 0, and
    misses most such groups."""
    known = sorted(v for v in values if v is not None)
    return all(b - a <= 1e-6 * max(1.0, abs(a)) for a, b in pairwise(known))


def _unique(names: list[str]) -> list[str]:
    return [f"{n} {names[:i].count(n) + 1}" if n in names[:i] else n for i, n in enumerate(names)]


def _name(reward: RewardFunction) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def _text(prompt: Any) -> str:
    """A prompt as text: one message as it is, several below each other, each after its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0].get("content"))
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)


def _clip(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    head, tail = text[: LONGEST * 3 // 4], text[-LONGEST // 4 :]
    return f"{head}\n[… {len(text) - LONGEST:,} characters left out …]\n{tail}"
