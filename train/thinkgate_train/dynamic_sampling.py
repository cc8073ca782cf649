"""Dynamic sampling: groups whose rewards are all equal are sampled again with other prompts.

Such groups have advantage 0, so they cost a rollout and teach nothing; DAPO (arXiv 2503.14476,
section 3.2) fills the batch with groups that differ. Owns the exchange of rows in a generated
batch; knows no reward and no loss. Each of several processes exchanges groups of its own, which it
must hold whole (`trl_options.py` sees to that); all sample again together, equally much.
"""

import random
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["with_dynamic_sampling"]


class DynamicSampling:
    """Mixed into TRL's GRPOTrainer or RLOOTrainer by `with_dynamic_sampling`.

    Logs `resampled`: the share of a batch's groups that were exchanged for informative ones.
    """

    rounds: int
    accelerator: Any
    args: Any
    model: Any
    num_generations: int
    state: Any
    train_dataset: Any
    _metrics: Any
    _tokenizer: Any

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        trl: Any = super()
        batch = trl._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        exchanged = 0
        for turn in range(self.rounds):
            dull = self._groups(batch, informative=False)
            # The most that any process lacks: sampling and scoring are done by all together.
            wanted = max(self._everywhere(len(dull)))
            if not wanted:
                break
            other = trl._generate_and_score_completions(self._other_prompts(wanted, turn))
            pairs = list(zip(dull, self._groups(other, informative=True), strict=False))
            batch = _exchanged(batch, other, pairs, self.num_generations, self._tokenizer)
            exchanged += len(pairs)
        if "num_items_in_batch" in batch:
            tokens = self.accelerator.gather(batch["completion_mask"].sum())
            batch["num_items_in_batch"] = tokens.sum()
        groups = len(batch["advantages"]) // self.num_generations
        self._metrics["train"]["resampled"].append(fmean(self._everywhere(exchanged)) / groups)
        return batch

    def _everywhere(self, number: int) -> list[int]:
        """The number of each process."""
        import torch

        own = torch.tensor([number], device=self.accelerator.device)
        return self.accelerator.gather(own).tolist()

    def _groups(self, batch: dict[str, Any], *, informative: bool) -> list[int]:
        """Numbers of the groups that have, or have not, an advantage to learn from."""
        by_group = batch["advantages"].view(-1, self.num_generations)
        # Rewards that are equal but for rounding leave advantages of that size behind.
        differs = (by_group.abs().amax(dim=1) > 1e-3).tolist()
        return [number for number, one in enumerate(differs) if one is informative]

    def _other_prompts(self, groups: int, turn: int) -> list[dict[str, Any]]:
        """Rows of `groups` prompts, each as often as a group is large; others in each process, and
        the same ones in a resumed run."""
        process = self.accelerator.process_index
        draw = random.Random(f"{self.args.seed} {self.state.global_step} {turn} {process}")
        rows = [self.train_dataset[draw.randrange(len(self.train_dataset))] for _ in range(groups)]
        return [row for row in rows for _ in range(self.num_generations)]


def with_dynamic_sampling(trainer_class: Any, rounds: int) -> Any:
    """`trainer_class` (TRL's GRPOTrainer or RLOOTrainer) with `rounds` further tries per batch."""
    return type(trainer_class.__name__, (DynamicSampling, trainer_class), {"rounds": rounds})


def _exchanged(
    batch: dict[str, Any],
    other: dict[str, Any],
    pairs: list[tuple[int, int]],
    size: int,
    tokenizer: Any,
) -> dict[str, Any]:
    """`batch` with the rows of its group `mine` replaced by those of `other`'s group `theirs`."""
    import torch

    if not pairs:
        return batch
    count = len(batch["advantages"])
    result = dict(batch)
    for name, old in batch.items():
        if not isinstance(old, torch.Tensor) or old.dim() == 0 or old.shape[0] != count:
            continue
        new = other[name]
        if old.dim() > 1:
            fill = tokenizer.pad_token_id if name.endswith("_ids") else 0
            width, left = max(old.shape[1], new.shape[1]), name.startswith("prompt")
            old, new = (_widened(rows, width, fill, left=left) for rows in (old, new))
        old = old.clone()
        for mine, theirs in pairs:
            old[mine * size : (mine + 1) * size] = new[theirs * size : (theirs + 1) * size]
        result[name] = old
    return result


def _widened(rows: "torch.Tensor", width: int, fill: int, *, left: bool) -> "torch.Tensor":
    """Rows (batch, length) padded to `width`: prompts on the left, completions on the right."""
    import torch

    missing = width - rows.shape[1]
    return torch.nn.functional.pad(rows, (missing, 0) if left else (0, missing), value=fill)
