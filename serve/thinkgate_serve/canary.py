"""Before clients do, the server asks a new model a few problems it is on record as having solved.

Owns which recorded problems are asked and how many must be right again. It finds what the gate
cannot: weights that load and answer nonsense on this machine. It is no second gate.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thinkgate.answers import Verdict, check
from thinkgate.checkpoint import META
from thinkgate.errors import ServerError
from thinkgate.format import Channel, SplitStatus
from thinkgate.problems import messages_digest
from thinkgate_serve.generation import Thinking, run_choices
from thinkgate_serve.model import Model
from thinkgate_serve.phases import Phased, bounded
from thinkgate_serve.protocol import ChatRequest

__all__ = ["Canary", "CanaryFailed", "sing"]

PROBLEMS = 16
SHARE = 0.5
"""Of the problems: what is solved once at temperature 1 is not solved each time, and what is broken
solves next to none. A model that repeats 3 of 4 fails this once in 130 deploys."""

PATIENCE_SECONDS = 300.0
"""An engine that hangs must not hold a deploy, and with it perhaps all requests, for ever."""


class CanaryFailed(ServerError):
    """The new model does not solve what it is on record as having solved, or does not answer."""


@dataclass(frozen=True, slots=True)
class Canary:
    """How it went."""

    asked: int
    right: int
    closed: int
    """Replies whose thought was closed, or that had none and none on record."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    messages: list[dict[str, str]]
    sampling: dict[str, Any]
    gold: str
    status: str
    tokens: int


ANYTHING = _Recorded([{"role": "user", "content": "1+1"}], {"max_tokens": 1}, "2", "closed", 1)


async def sing(model: Model, checkpoint: Path) -> Canary:
    """Ask `model` the shortest recorded solutions of `checkpoint` again; CanaryFailed when too few
    are right. Without records it must only say something, and `asked` is 0."""
    problems = await asyncio.to_thread(_recorded, checkpoint)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            results = await asyncio.gather(
                *(_solve(model, problem, f"canary-{at}") for at, problem in enumerate(problems))
            )
            if not problems:
                await _solve(model, ANYTHING, "canary")
    except TimeoutError as error:
        raise CanaryFailed(f"canary: no answer within {PATIENCE_SECONDS:g} seconds") from error
    canary = Canary(
        asked=len(results),
        right=sum(right for right, _ in results),
        closed=sum(closed for _, closed in results),
    )
    if min(canary.right, canary.closed) < SHARE * canary.asked:
        raise CanaryFailed(
            f"canary: of {canary.asked} problems this checkpoint is on record as having solved, "
            f"{canary.right} are right here and {canary.closed} have the recorded format; "
            f"{SHARE:.0%} must"
        )
    return canary


async def _solve(model: Model, problem: _Recorded, request_id: str) -> tuple[bool, bool]:
    """Whether the answer is right, and whether the thought ended as on record."""
    sampling = dict(problem.sampling)
    limit, budget = sampling.pop("max_tokens", None), sampling.pop("thinking_budget", None)
    request = ChatRequest.model_validate({"messages": problem.messages, **sampling})
    prompt = await model.render(request.messages, {})
    room = model.engine.context_length - len(prompt.ids)
    plan = model.plan(request, prompt, min(limit or room, room))
    if budget is not None:
        budget = bounded(budget, plan.sampling.max_tokens, len(model.closings[1].ids))
        plan = replace(plan, thinking_budget=budget)
    choice = (Phased if plan.phased else Thinking)(0, plan, model.engine.tokenizer.decode)
    answer: list[str] = []
    async for _, pieces in run_choices(model.engine, plan, [choice], request_id):
        answer += [text for channel, text in pieces if channel is Channel.ANSWER]
    graded = None if choice.status is SplitStatus.TRUNCATED else "".join(answer)
    verdict = await asyncio.to_thread(check, graded, problem.gold)
    return verdict is Verdict.CORRECT, choice.status == problem.status


def _recorded(checkpoint: Path) -> list[_Recorded]:
    """The shortest solved samples, one a problem."""
    found: dict[str, _Recorded] = {}
    for file in sorted(checkpoint.joinpath(META, "evals").glob("*.jsonl")):
        for problem in _solved(file):
            found.setdefault(json.dumps(problem.messages), problem)
    return sorted(found.values(), key=lambda problem: problem.tokens)[:PROBLEMS]


def _solved(file: Path) -> Iterator[_Recorded]:
    header = file.with_name(f"{file.stem}.run.json")
    identity = json.loads(header.read_text("utf-8"))["identity"] if header.is_file() else {}
    prompt = identity.get("prompt") or {}
    drawn = identity.get("sampling") or {"temperature": 0}
    wanted = ("temperature", "top_p", "max_tokens", "thinking_budget")
    sampling = {key: drawn[key] for key in wanted if drawn.get(key) is not None}
    for line in file.read_text("utf-8").splitlines():
        record = json.loads(line)
        if record.get("verdict") != Verdict.CORRECT or not record.get("prompt"):
            continue
        text = prompt.get("template", "{prompt}").replace("{prompt}", record["prompt"])
        system = [{"role": "system", "content": prompt["system"]}] if prompt.get("system") else []
        messages = [*system, {"role": "user", "content": text}]
        if not messages_digest(messages).startswith(record.get("prompt_hash") or "none"):
            continue  # it was put another way, which is not known here
        tokens = (record.get("reasoning_tokens") or 0) + (record.get("answer_tokens") or 0)
        seeded = sampling | {"seed": record.get("seed")}
        yield _Recorded(messages, seeded, record["gold"], record["status"], tokens)
