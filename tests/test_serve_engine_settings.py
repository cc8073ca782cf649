"""Every setting of vLLM's engine is reachable: what is given arrives in its configuration."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from vllm.v1.engine.async_llm import AsyncLLM
from thinkgate.errors import ThinkgateError
from thinkgate_serve.engine import VLLMEngine

def show(config, **_):
    parallel, scheduler = config.parallel_config, config.scheduler_config
    found = {name: getattr(parallel, name) for name in (
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
        "data_parallel_backend", "distributed_executor_backend")}
    raise ValueError(json.dumps(found | {"max_num_seqs": scheduler.max_num_seqs}))

AsyncLLM.from_vllm_config = show
for options in json.loads(sys.argv[2]):
    try:
        VLLMEngine.load(sys.argv[1], options)
    except ThinkgateError as error:
        print(f"{type(error).exit_code} {error}")
"""
"""One interpreter for all cases: importing vLLM takes longer than making its configuration."""

RAY = find_spec("ray") is not None

GIVEN: dict[str, dict[str, Any]] = {
    "one process": {},
    "tensor": {"tensor_parallel_size": 2, "max_num_seqs": 7},
    "pipeline": {"pipeline_parallel_size": 2},
    "data": {"data_parallel_size": 2},
    "heads": {"tensor_parallel_size": 3},
    "word": {"tensor_parallel_size": "many"},
    "none": {"data_parallel_size": 0},
    "ray": {"distributed_executor_backend": "ray"},
    "typo": {"tensor_parallel": 2},
}


@pytest.fixture(scope="module")
def said(gated_checkpoint: Path) -> dict[str, str]:
    """What became of each of GIVEN: vLLM's configuration, or a sentence."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(gated_checkpoint), json.dumps(list(GIVEN.values()))],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(GIVEN, done.stdout.splitlines(), strict=True))


def test_what_is_given_arrives_and_the_rest_is_one_process(said: dict[str, str]) -> None:
    def configured(case: str) -> dict[str, Any]:
        return json.loads(said[case][said[case].index("{") :])

    alone = configured("one process")
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    assert [alone[size] for size in sizes] == [1, 1, 1]
    assert alone["distributed_executor_backend"] == "uni"
    for case in ("tensor", "pipeline", "data"):
        found = configured(case)
        assert found | GIVEN[case] == found
        assert found["distributed_executor_backend"] != "uni" or case == "data"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("heads", "Total number of attention heads (4) must be divisible by tensor parallel"),
        ("word", "--engine.tensor_parallel_size 'many': Input should be a valid integer"),
        ("none", "--engine.data_parallel_size 0: Input should be greater than or equal to 1"),
        ("ray", '"distributed_executor_backend": "ray"' if RAY else "Failed to import Ray"),
        ("typo", "vLLM has no such setting; did you mean 'tensor_parallel_size'?"),
    ],
)
def test_what_vllm_refuses_is_one_sentence(said: dict[str, str], case: str, words: str) -> None:
    assert said[case].startswith("2 ")
    assert words in said[case]
    assert "input_value" not in said[case] and "errors.pydantic.dev" not in said[case]
