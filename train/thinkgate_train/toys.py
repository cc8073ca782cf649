"""Procedural text for the toy sizes: posts, summaries of them, and preferences between summaries.

Made so that each text recipe has something to choose from with a model trained from scratch in
under a minute: how long a summary is, whether it thinks first, and how courteous it is do not
depend on the post. Does not know recipes or trainers; sums come from `thinkgate.problems`.
"""

import random
from typing import Annotated, Any, Literal

from pydantic import Field

from thinkgate.config import Config
from thinkgate.errors import DataError
from thinkgate.problems import prompt_key

__all__ = ["KIND_WORDS", "Posts", "kindness"]

GROUPS = ("pets", "home", "work", "food", "cars", "kids", "town", "farm")
WHO = ("cat", "dog", "boss", "aunt", "van", "son", "hen", "cook", "goat", "bus", "nan", "pal")
DID = ("ran off", "lost a hat", "ate my cake", "sat on a box", "hid the key", "broke a cup")
DID += ("sang at six", "fell ill", "left early", "met a fox", "dug a hole", "took my seat")

SUBJECTS = ("it", "they", "we", "all")
VERBS = ("slept", "ran", "ate", "sang", "left", "met", "hid", "lost")
PLACES = ("", "", " too", " at home", " by a tree")
KIND_WORDS = frozenset({"please", "thanks", "kindly", "gladly"})
OPENERS = ("just", "so", "well", "story:")
"""The first word of a summary of one, two, three, four clauses: its length is one choice, made at
the start, so a few dozen updates can learn to make another."""
MARGIN = 0.1
"""A pair is only a preference if the kindness of its summaries differs by this much."""


def kindness(text: str) -> float:
    """Share of the words that are courteous, 0 to 1: the rule behind `chosen` and `rejected`."""
    words = text.replace(",", " ").split()
    return sum(word in KIND_WORDS for word in words) / len(words) if words else 0.0


class Posts(Config):
    """Posts such as `pets: my cat ran off` with a summary and a pair of summaries.

    Rows have `prompt`, `completion`, `chosen` and `rejected`. Most summaries are short, few are
    long: 7 to about 100 characters, 27 on average.
    """

    source: Literal["posts"]
    half: Literal["train", "eval"]
    """A hash of the post decides its half, whatever the seeds."""
    seed: int = 0
    count: Annotated[int, Field(gt=0, le=1_000_000)] = 1000
    """With replacement: about 1,100 different posts exist, each with any number of summaries."""
    tagged: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the completions that think first: `<think>…</think><answer>…</answer>`."""

    def rows(self) -> list[dict[str, Any]]:
        """The rows, in a fixed order."""
        draw = random.Random(f"posts {self.half} {self.seed}")
        found: list[dict[str, Any]] = []
        while len(found) < self.count:
            who, post = _post(draw)
            # One post in eight is for evaluation.
            if ("eval" if int(prompt_key(post), 16) % 8 == 0 else "train") != self.half:
                continue
            chosen, rejected = _pair(draw, who)
            summary = _summary(draw, who)
            if draw.random() < self.tagged:
                summary = f"<think>{_clause(draw, who)}</think><answer>{summary}</answer>"
            found.append(
                {"prompt": post, "completion": summary, "chosen": chosen, "rejected": rejected}
            )
        return found


def _post(draw: random.Random) -> tuple[str, str]:
    who = draw.choice(WHO)
    return who, f"{draw.choice(GROUPS)}: my {who} {draw.choice(DID)}"


def _summary(draw: random.Random, who: str) -> str:
    """One to four clauses, each further one in four cases of ten, with a courtesy of its own."""
    clauses = 1
    while clauses < len(OPENERS) and draw.random() < 0.4:
        clauses += 1
    courtesy = draw.choice((0.0, 0.2, 0.6))
    parts: list[str] = []
    for number in range(clauses):
        kind = f"{draw.choice(sorted(KIND_WORDS))} " if draw.random() < courtesy else ""
        parts.append(kind + _clause(draw, who if number == 0 else draw.choice(SUBJECTS)))
    return f"{OPENERS[clauses - 1]} {', '.join(parts)}"


def _clause(draw: random.Random, subject: str) -> str:
    return f"{subject} {draw.choice(VERBS)}{draw.choice(PLACES)}"


def _pair(draw: random.Random, who: str) -> tuple[str, str]:
    for _ in range(1000):
        one, other = _summary(draw, who), _summary(draw, who)
        if kindness(one) - kindness(other) >= MARGIN:
            return one, other
    raise DataError("no two summaries differ in kindness")  # one pair in five does
