"""Dynamic sampling: equal groups make room for informative ones, row by row, padding included."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from thinkgate.cli import main
from thinkgate.records import read_records
from thinkgate_train.dynamic_sampling import with_dynamic_sampling

PAD = 99
SIZE = 2


class Scripted:
    """A trainer whose every batch is given; TRL's part in miniature."""

    def __init__(self, *batches: dict[str, Any]) -> None:
        self.batches = list(batches)
        self.asked: list[int] = []
        self.num_generations = SIZE
        self.model = SimpleNamespace(training=True)
        self.args = SimpleNamespace(seed=0)
        self.state = SimpleNamespace(global_step=3)
        self.train_dataset = [{"prompt": str(n)} for n in range(50)]
        self._metrics: Any = {"train": defaultdict(list)}
        self._tokenizer = SimpleNamespace(pad_token_id=PAD)
        self.accelerator = SimpleNamespace(gather=torch.atleast_1d, process_index=0, device="cpu")

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.asked.append(len(inputs))
        return self.batches.pop(0)


def batch(*groups: tuple[int, list[float]], prompt: int = 2, completion: int = 3) -> dict[str, Any]:
    """Rows of group `token` are made of that token only, at the given widths."""
    tokens = torch.tensor([token for token, _ in groups for _ in range(SIZE)])
    ids = tokens[:, None].expand(-1, completion)
    return {
        "prompt_ids": tokens[:, None].expand(-1, prompt),
        "completion_ids": ids,
        "completion_mask": torch.ones_like(ids),
        "old_per_token_logps": -tokens[:, None].expand(-1, completion).float(),
        "advantages": torch.tensor([a for _, values in groups for a in values]),
        "num_items_in_batch": torch.tensor(ids.numel()),
    }


EQUAL, DIFFERENT = [0.0, 1e-6], [0.7, -0.7]


def run(rounds: int, *batches: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    trainer = with_dynamic_sampling(Scripted, rounds)(*batches)
    return trainer._generate_and_score_completions([{"prompt": "x"}] * 4), trainer


def test_an_equal_group_makes_room_for_an_informative_one() -> None:
    made, trainer = run(
        3,
        batch((1, EQUAL), (2, DIFFERENT)),
        batch((7, DIFFERENT), prompt=4, completion=1),
    )
    assert trainer.asked == [4, 2]
    assert made["completion_ids"].tolist() == [[7, PAD, PAD]] * 2 + [[2, 2, 2]] * 2
    assert made["prompt_ids"].tolist() == [[7, 7, 7, 7]] * 2 + [[PAD, PAD, 2, 2]] * 2
    assert made["completion_mask"].tolist() == [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2
    assert made["old_per_token_logps"][:2].tolist() == [[-7, 0, 0]] * 2
    assert made["advantages"].tolist() == pytest.approx([*DIFFERENT, *DIFFERENT])
    assert made["num_items_in_batch"] == 8
    assert trainer._metrics["train"]["resampled"] == [0.5]


def test_it_tries_again_and_then_lets_be() -> None:
    dull = batch((1, EQUAL), (2, EQUAL))
    made, trainer = run(2, dull, batch((3, EQUAL), (4, DIFFERENT)), batch((5, EQUAL)))
    assert trainer.asked == [4, 4, 2]  # two groups were missing, then one
    assert sorted(set(made["completion_ids"].flatten().tolist())) == [2, 4]
    assert trainer._metrics["train"]["resampled"] == [0.5]


def test_informative_batches_and_evaluation_are_left_alone() -> None:
    good = batch((1, DIFFERENT), (2, DIFFERENT))
    made, trainer = run(3, good)
    assert trainer.asked == [4] and made is good
    dull = batch((1, EQUAL), (2, EQUAL))
    trainer = with_dynamic_sampling(Scripted, 3)(dull)
    trainer.model.training = False
    assert trainer._generate_and_score_completions([]) is dull


def test_all_processes_sample_again_together_and_count_together() -> None:
    """The other process lacks two groups where this one lacks none: it samples along in vain."""

    def gather(own: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.atleast_1d(own), torch.tensor([2])])

    good = batch((1, DIFFERENT), (2, DIFFERENT))
    trainer = with_dynamic_sampling(Scripted, 1)(good, batch((3, DIFFERENT), (4, DIFFERENT)))
    trainer.accelerator.gather = gather
    made = trainer._generate_and_score_completions([{"prompt": "x"}] * 4)
    assert trainer.asked == [4, 4]
    assert made["completion_ids"].tolist() == good["completion_ids"].tolist()
    assert made["num_items_in_batch"] == 12 + 2
    assert trainer._metrics["train"]["resampled"] == [0.5]  # 2 of 4


def test_processes_draw_other_prompts_each() -> None:
    asked: list[list[dict[str, Any]]] = []
    for process in (0, 1):
        trainer = with_dynamic_sampling(Scripted, 1)()
        trainer.accelerator.process_index = process
        asked.append(trainer._other_prompts(8, 0))
    assert asked[0] != asked[1]


def test_a_group_spread_over_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = ["prepare.dynamic_sampling=2", "trl.per_device_train_batch_size=4"]
    assert main(["train", "quickstart-grpo", *settings, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "groups of 8 do not divide the 4 rollouts of each" in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_it_fills_real_batches(tmp_path: Path, method: str) -> None:
    """Half of the prompts get one reward whatever is said; their groups are exchanged."""
    (tmp_path / "half.py").write_text(
        "def half(prompts, completions, **_):\n"
        "    return [len(c) if p[0] in '2468' else 0.0 for p, c in zip(prompts, completions)]\n"
    )
    recipe = tmp_path / "half.yaml"
    recipe.write_text(
        f"""
name: half
method: {method}
model: {{scratch: {{hidden_size: 64, intermediate_size: 128, layers: 1, kv_heads: 1}}}}
data: {{source: arithmetic, half: train, count: 200}}
prepare: {{dynamic_sampling: 3}}
preflight: {{enabled: false}}
rewards: [{{name: "{tmp_path}/half.py:half"}}]
trl:
  beta: 0.0
  max_steps: 3
  per_device_train_batch_size: 32
  num_generations: 4
  max_completion_length: 8
"""
    )
    out = tmp_path / "out"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    rows = [row for _, row in read_records(out / "thinkgate" / "metrics.jsonl")]
    shares = [row["resampled"] for row in rows if "resampled" in row]
    assert len(shares) == 3 and 0.2 < sum(shares) / 3 < 0.8
