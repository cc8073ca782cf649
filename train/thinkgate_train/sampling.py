"""Method `sample`: completions worth learning from, of a teacher or of the model itself.

With a teacher's endpoint it is distillation, with the recipe's own model rejection sampling, as
between the phases of DeepSeek-R1 (arXiv 2501.12948, section 2.3.3). What the verifier (and a judge)
accepts becomes `data.jsonl`, which an `sft` recipe takes. Samples are written down as they come, so
an interrupted run goes on where it was.
"""

import asyncio
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkgate.answers import Verdict, check_many
from thinkgate.checkpoint import alone, now, require_space, write_atomic
from thinkgate.config import parse
from thinkgate.console import Meter, console, progress
from thinkgate.errors import ConfigError, DataError, EndpointError, MissingDependencyError
from thinkgate.format import SplitStatus, split
from thinkgate.records import read_records
from thinkgate_train.data import Rows, opens_thought, prepare_rows, render
from thinkgate_train.models import load_start, load_tokenizer, prepare_libraries
from thinkgate_train.recipe import Recipe, Sampling

__all__ = ["sample_rows"]

SAMPLES, DATA, DONE = "samples.jsonl", "data.jsonl", "sampling.json"
# What decides a sample. Where the teacher is, and what is kept of its samples, may change between
# a run and its resumption.
DECISIVE = ("model", "data", "prepare", "prompt", "open_tag", "close_tag", "seed")
DECISIVE_SAMPLING = ("teacher", "samples", "temperature", "max_tokens", "batch_size")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion to sample: of which row, and the how-manieth."""

    row: int
    sample: int


Sink = Callable[[Wanted, str], None]
"""Takes the completion of one wanted sample, thought included, as text."""


def sample_rows(
    recipe: Recipe, out: Path, *, data_dir: Path | None = None, check_only: bool = False
) -> None:
    """Fill `out` with `data.jsonl` (prompt, gold, completion) and, last, `sampling.json`.

    Raises DataError when nothing was accepted, EndpointError when the teacher cannot be reached;
    samples that were taken before are kept and not taken again.
    """
    settings = recipe.sampling
    assert settings is not None  # Recipe checks it
    prepare_libraries()
    require_space(out, recipe.disk_mib)
    if (out / DONE).is_file():
        raise ConfigError(f"{out} already holds samples; choose another --out, or remove it")
    tokenizer = load_tokenizer(recipe)
    rows = prepare_rows(recipe, tokenizer, data_dir)
    for note in rows.notes:
        console.print(f"  {note}", soft_wrap=True)
    if check_only:
        console.print(f"  {len(rows.train)} problems x {settings.samples} samples to take")
        return
    folder = out.with_name(f".{out.name}.sampling")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        taken = _Taken(folder, recipe)
        prefilled = _take(recipe, tokenizer, rows, taken)
        _keep(recipe, out, rows, taken, prefilled)


def _take(recipe: Recipe, tokenizer: Any, rows: Rows, taken: "_Taken") -> bool:
    """Sample what is missing; whether the completions begin inside a thought."""
    settings = recipe.sampling
    assert settings is not None
    open_wanted = [
        wanted
        for row in range(len(rows.train))
        for wanted in (Wanted(row, sample) for sample in range(settings.samples))
        if wanted not in taken.texts
    ]
    with progress(recipe.name, total=len(open_wanted)) as meter, taken.writing(meter) as sink:
        if settings.endpoint is not None:
            asyncio.run(_from_endpoint(recipe, settings, rows, open_wanted, sink))
            return False  # an endpoint sends the whole thought, whatever its template does
        _from_model(recipe, settings, rows, open_wanted, sink)
    return opens_thought(recipe, rows, tokenizer)


def _keep(recipe: Recipe, out: Path, rows: Rows, taken: "_Taken", prefilled: bool) -> None:
    """Write what is worth learning from; DataError when nothing is."""
    accepted, counts = _accepted(recipe, rows, taken.texts, prefilled)
    shown = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
    console.print(f"[bold]{out}[/]: {len(accepted):,} kept; {shown}", soft_wrap=True)
    if not accepted:
        raise DataError(
            f"{recipe.name}: none of {len(taken.texts)} samples was accepted ({shown}); use a "
            "better teacher, easier problems, or more sampling.samples"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / DATA, "".join(json.dumps(row) + "\n" for row in accepted))
    summary = {"config": recipe.model_dump(mode="json"), "counts": counts, "created": now()}
    write_atomic(out / DONE, json.dumps(summary, indent=2))
    shutil.rmtree(taken.folder)


class _Taken:
    """The samples so far, in a file that only grows."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.texts: dict[Wanted, str] = {}
        whole = recipe.model_dump(mode="json")
        asked = {key: whole[key] for key in DECISIVE}
        asked |= {key: whole["sampling"][key] for key in DECISIVE_SAMPLING}
        begun = folder / "recipe.json"
        if begun.is_file():
            before = json.loads(begun.read_text(encoding="utf-8"))
            changed = [key for key in asked if asked[key] != before.get(key)]
            if changed:
                raise ConfigError(
                    f"{folder} holds samples taken with another {', '.join(changed)}; remove it, "
                    "or choose another --out"
                )
        write_atomic(begun, json.dumps(asked, indent=2))
        self._file = folder / SAMPLES
        if self._file.is_file():
            _drop_torn_line(self._file)
            for _, row in read_records(self._file):
                self.texts[Wanted(row["row"], row["sample"])] = row["completion"]

    def writing(self, meter: Meter) -> "_Writer":
        return _Writer(self, meter)


class _Writer:
    """Appends samples to the file as they come."""

    def __init__(self, taken: _Taken, meter: Meter) -> None:
        self._taken, self._meter = taken, meter

    def __enter__(self) -> Sink:
        self._file = (self._taken.folder / SAMPLES).open("a", encoding="utf-8")
        return self._add

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _add(self, wanted: Wanted, completion: str) -> None:
        row = {"row": wanted.row, "sample": wanted.sample, "completion": completion}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._taken.texts[wanted] = completion
        self._meter.advance()


def _drop_torn_line(file: Path) -> None:
    """What a killed process had written of its last line."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        write_atomic(file, whole.decode("utf-8"))


def _accepted(
    recipe: Recipe, rows: Rows, texts: dict[Wanted, str], prefilled: bool
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows to learn from, and how many samples went which way."""
    settings = recipe.sampling
    assert settings is not None
    counts: Counter[str] = Counter()
    ordered = sorted(texts.items(), key=lambda item: (item[0].row, len(item[1]), item[0].sample))
    closed: list[tuple[Wanted, str, str]] = []
    for wanted, text in ordered:
        parts = split(text, prefilled=prefilled, tags=recipe.tags)
        if parts.status is SplitStatus.CLOSED and (parts.answer or "").strip():
            closed.append((wanted, text, parts.answer or ""))
        else:
            counts[parts.status.lower() if parts.status is not SplitStatus.CLOSED else "empty"] += 1
    verdicts = [Verdict.CORRECT] * len(closed)
    if settings.verify:
        golds = [(answer, str(rows.train[w.row]["gold"])) for w, _, answer in closed]
        verdicts = check_many(golds)
    counts.update(v.value for v in verdicts if v is not Verdict.CORRECT)
    right = [item for item, v in zip(closed, verdicts, strict=True) if v is Verdict.CORRECT]
    kept: list[dict[str, Any]] = []
    of_row: dict[int, set[str]] = {}
    for wanted, text, _ in _judged(settings, rows, right, counts):
        mine = of_row.setdefault(wanted.row, set())
        if text in mine:
            counts["duplicate"] += 1
        elif len(mine) >= settings.keep:
            counts["more than keep"] += 1
        else:
            mine.add(text)
            gold = rows.train[wanted.row].get("gold")
            row = {"prompt": rows.problems[wanted.row], "gold": gold, "completion": text}
            kept.append({key: value for key, value in row.items() if value is not None})
    return kept, counts


def _judged(
    settings: Sampling, rows: Rows, right: list[tuple[Wanted, str, str]], counts: Counter[str]
) -> Iterator[tuple[Wanted, str, str]]:
    if settings.judge is None:
        yield from right
        return
    from thinkgate_train.rewards.judges import LLMJudge
    from thinkgate_train.sources import prompt_text

    judge = parse(LLMJudge, settings.judge.args, "sampling.judge.args")
    judge.connect()
    scores = judge.score(
        [prompt_text(rows.train[w.row]) for w, _, _ in right],
        [answer for _, _, answer in right],
        [rows.train[w.row].get("gold") for w, _, _ in right],
    )
    for item, score in zip(right, scores, strict=True):
        if score is None:
            counts["not judged"] += 1
        elif score < settings.judge.at_least:
            counts["judged too low"] += 1
        else:
            yield item


def _from_model(
    recipe: Recipe, settings: Sampling, rows: Rows, open_wanted: list[Wanted], sink: Sink
) -> None:
    """Sample from the recipe's model in this process, a batch of whole prompts at a time."""
    if not open_wanted:
        return
    import torch

    from thinkgate_train.decoding import sample

    start = load_start(recipe)
    tokenizer: Any = start.tokenizer
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = start.model.to(device)  # type: ignore[arg-type]
    for first in range(0, len(open_wanted), settings.batch_size):
        batch = open_wanted[first : first + settings.batch_size]
        # The batch decides the seed, so that a resumed run takes the samples it would have taken.
        torch.manual_seed(random.Random(f"{recipe.seed} {batch[0]}").getrandbits(63))
        prompts = tokenizer(
            [render(tokenizer, rows.train[w.row]["prompt"]) for w in batch],
            add_special_tokens=False,
        )["input_ids"]
        rollouts = sample(
            model,
            prompts,
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            eos_ids=[tokenizer.eos_token_id],
            pad_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(rollouts.completion_ids, skip_special_tokens=True)
        for wanted, text in zip(batch, texts, strict=True):
            sink(wanted, text)


async def _from_endpoint(
    recipe: Recipe, settings: Sampling, rows: Rows, open_wanted: list[Wanted], sink: Sink
) -> None:
    """Ask the teacher, `concurrency` requests at a time; what fails after retries ends the run."""
    try:
        import openai
    except ImportError as error:
        raise MissingDependencyError(
            "sampling from an endpoint needs 'openai'; pip install 'thinkgate[clients]'"
        ) from error
    gate = asyncio.Semaphore(settings.concurrency)
    key = os.environ.get(settings.api_key_env, "none")

    async def one(client: Any, wanted: Wanted) -> None:
        prompt = rows.train[wanted.row]["prompt"]
        async with gate:
            reply = await client.chat.completions.create(
                model=settings.teacher or "default",
                messages=[{"role": "user", "content": prompt}]
                if isinstance(prompt, str)
                else prompt,
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                # A seed of its own for each sample: with one for all they would be identical.
                seed=random.Random(f"{recipe.seed} {wanted}").getrandbits(31),
            )
        sink(wanted, _with_thought(recipe, reply.choices[0]))

    async with openai.AsyncOpenAI(base_url=settings.endpoint, api_key=key, max_retries=5) as client:
        tasks = [asyncio.create_task(one(client, wanted)) for wanted in open_wanted]
        try:
            await asyncio.gather(*tasks)
        except openai.APIError as error:
            raise EndpointError(
                f"{settings.endpoint}: {error}; the samples so far are kept, run it again to go on"
            ) from error
        finally:
            for task in tasks:
                task.cancel()


def _with_thought(recipe: Recipe, choice: Any) -> str:
    """The whole completion as text. Servers that split send the thought beside the content."""
    content = choice.message.content or ""
    fields = choice.message.model_dump()
    thought = fields.get("reasoning_content") or fields.get("reasoning")
    if not thought:
        return content  # it is in the content, or there was none
    tags = recipe.tags
    if choice.finish_reason == "length" and not content:
        return f"{tags.open}{thought}"
    assert recipe.sampling is not None
    return recipe.sampling.trace.format(
        open=tags.open, thought=thought, close=tags.close, answer=content
    )
