"""An lm-eval task over rows a test writes, and lm-eval as its own users run it.

Not a test: what the tests of both bridges to lm-eval share.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROWS = """\
import json, pathlib
from datasets import Dataset

def rows(**_):
    lines = pathlib.Path(__file__).with_name("rows.jsonl").read_text().splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}

def quiet(doc, results):
    return {"quiet": not any(c.isdigit() for c in results[0])}
"""

SUMS = tuple({"prompt": f"{n}+{n}", "target": str(2 * n)} for n in range(1, 5))


def write_task(
    folder: Path, rows: Sequence[Mapping[str, str]] = SUMS, name: str = "sums", **config: Any
) -> Path:
    """A task that compares the first number of the answer with `target`; `config` changes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.py").write_text(ROWS)
    task = {
        "task": name,
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": ["STOP"], "temperature": 0.0, "do_sample": False},
        "filter_list": [_first(r"(-?[0-9]+)", "number"), _first(r"#### (-?[0-9]+)", "strict")],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    task = {key: value for key, value in {**task, **config}.items() if value is not None}
    file = folder / f"{name}.yaml"
    functions = {"custom_dataset": "rows.rows"}
    if any(each["metric"] == "quiet" for each in task.get("metric_list", ())):
        functions["process_results"] = "rows.quiet"
    text = "".join(f"{key}: !function {value}\n" for key, value in functions.items())
    file.write_text(text + yaml.safe_dump(task))
    return file


def _first(pattern: str, name: str) -> dict[str, Any]:
    steps = [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]
    return {"name": name, "filter": steps}


def plain_lm_eval(
    task: str, url: str, *, include: Path | None = None, cache: Path | None = None, **model: Any
) -> dict[str, Any]:
    """What lm-eval's own `local-chat-completions` makes of a task, file or name in `include`."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    found: Any = simple_evaluate(
        model="local-chat-completions",
        model_args={
            "model": "scripted",
            "base_url": f"{url}/chat/completions",
            "num_concurrent": 2,
            "max_retries": 1,
            **model,
        },
        tasks=[task],
        task_manager=TaskManager(
            include_path=str(include) if include else None, include_defaults=False
        ),
        use_cache=str(cache) if cache else None,
        apply_chat_template=True,
        torch_random_seed=None,  # type: ignore[arg-type]
    )
    return found


def answers_of(results: Mapping[str, Any], task: str = "sums") -> list[list[str]]:
    """What lm-eval took for the answers to each problem, one list of repeats per request."""
    rows = results["samples"][task]
    return [resps for row in rows if row["filter"] == rows[0]["filter"] for resps in row["resps"]]
