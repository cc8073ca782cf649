"""Our suites as lm-eval tasks: lm-eval loads this file for the YAML files beside it.

Problems, prompt, sampling and verdict of a task `thinkgate_NAME` are those of the suite NAME, read
when the task is built; nothing of them is written down here. Knows nothing of who is asked.

Metrics per problem, over its answers: `acc` (of the graded ones; absent when there are none),
`no_answer`, `unmeasured` (the verifier settled on nothing), and with several answers `distinct`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from thinkgate.answers import Verdict, check
from thinkgate.format import split
from thinkgate_evals.lm_tasks import PREFIX, AnswerPart
from thinkgate_evals.records import GRADED
from thinkgate_evals.runner import sample_seed
from thinkgate_evals.suites import LoadedSuite, load_suite

DATA_DIR = "THINKGATE_DATA_DIR"
"""Environment variable with the folder of local data files; so does the metadata's `data_dir`."""

METRICS = {"acc": True, "no_answer": False, "unmeasured": False, "distinct": True}
"""Whether more is better."""


class SuiteTask(ConfigurableTask):
    """The suite whose name follows `thinkgate_` in the task's name.

    What a YAML file or the command line sets wins over the suite. Metadata: `suite` for another
    suite, `data_dir` for local data files, `prefilled` where prompts end inside an open thought.
    """

    suite: LoadedSuite

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = {key: value for key, value in config.items() if key != "class"}
        metadata = given.get("metadata") or {}
        folder = metadata.get("data_dir") or os.environ.get(DATA_DIR)
        name = metadata.get("suite") or given["task"].removeprefix(PREFIX)
        self.suite = load_suite(name, data_dir=Path(folder) if folder else None)
        self._prefilled = bool(metadata.get("prefilled"))
        merged = _config(self.suite) | given
        merged["metadata"] = {"version": self.suite.suite.version} | metadata
        super().__init__(config=merged)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """The suite's problems, with its prompt filled in."""
        del dataset_kwargs
        self.dataset = {
            "test": Dataset.from_list([_row(self.suite, p) for p in self.suite.problems])
        }

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> list[Instance]:
        """One request for each answer, with a seed of its own.

        lm-eval's `repeats` would send one seed for all of them, and its cache would give them all
        the same answer. The seeds do not depend on the problem, because lm-eval asks requests at
        the same time only if their parameters are equal.
        """
        sampling = dict(deepcopy(self.config.generation_kwargs) or {})
        seed = sampling.pop("seed", self.suite.suite.sampling.seed)
        task, doc_id, repeats = kwargs["metadata"]
        return [
            Instance(
                request_type="generate_until",
                doc=doc,
                arguments=(ctx, sampling | {"seed": sample_seed(seed, "", repeat)}),
                idx=repeat,
                metadata=(task, doc_id, 1),
            )
            for repeat in range(repeats)
        ]

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
        """Grade the answer part of each completion with our verifier."""
        verdicts = [check(self._answer(text), doc["gold"]) for text in results]
        graded = [verdict for verdict in verdicts if verdict in GRADED]
        scores = {"acc": graded.count(Verdict.CORRECT) / len(graded)} if graded else {}
        scores["no_answer"] = verdicts.count(Verdict.NO_ANSWER) / len(verdicts)
        scores["unmeasured"] = 1 - len(graded) / len(verdicts)
        if len(results) > 1:
            scores["distinct"] = len(set(results)) / len(results)
            if len(set(results)) == 1 and self._temperature > 0:
                logging.getLogger("lm_eval").warning(
                    "%s: all %d answers to %s are the same", self.task_name, len(results), doc["id"]
                )
        return scores

    @property
    def _temperature(self) -> float:
        return (self.config.generation_kwargs or {}).get("temperature", 0.0)

    def _answer(self, text: str) -> str | None:
        return text if isinstance(text, AnswerPart) else split(text, self._prefilled).answer


def _config(loaded: LoadedSuite) -> dict[str, Any]:
    sampling = loaded.suite.sampling
    return {
        "output_type": "generate_until",
        "test_split": "test",
        # Names of columns: lm-eval would read the texts themselves as Jinja templates.
        "description": "system",
        "doc_to_text": "user",
        "doc_to_target": "gold",
        "num_fewshot": 0,
        "repeats": loaded.suite.samples,
        "generation_kwargs": {
            "until": [],
            "do_sample": sampling.temperature > 0,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_gen_toks": sampling.max_tokens,
        }
        | ({"thinking_budget": sampling.thinking_budget} if sampling.thinking_budget else {}),
        # Any value: without one, lm-eval looks for the metrics on the Hub.
        "process_results": "the suite's verifier",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": better}
            for name, better in METRICS.items()
        ],
    }


def _row(loaded: LoadedSuite, problem: Any) -> dict[str, str]:
    texts = {m["role"]: m["content"] for m in loaded.suite.prompt.messages(problem.prompt)}
    return {
        "id": problem.id,
        "prompt": problem.prompt,
        "system": texts.get("system", ""),
        "user": texts["user"],
        "gold": problem.gold,
    }
