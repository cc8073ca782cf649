"""PPO training a tiny model on CPU: it learns, saves, resumes, and runs on two processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from thinkgate.errors import CheckpointError

WIDTH = 12  # tokens of a completion in the runs below
LOW = 128  # of the tokenizer's 261 tokens: what the toy reward counts


def share_of_low_tokens(completion_ids: Sequence[list[int]], **_: Any) -> list[float | None]:
    return [sum(i < LOW for i in ids) / len(ids) for ids in completion_ids]


def build(
    folder: Path,
    reward: Callable[..., list[float | None]] = share_of_low_tokens,
    lora: bool = False,
    fast: bool = False,
    **options: Any,
) -> Any:
    """A trainer of a tiny random model, whose rows are `prompt` (plain text) and `gold`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback

    from thinkgate_train.ppo import PPOConfig, PPOTrainer
    from thinkgate_train.rollouts import with_rollouts
    from thinkgate_train.scratch import Scratch, build_model, build_tokenizer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    size = Scratch(
        hidden_size=32, intermediate_size=64, layers=1, kv_heads=1, initializer_range=0.3
    )
    given = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 16,
        "max_completion_length": WIDTH,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        **options,
    }
    rows = [{"prompt": f"{i}" + "ab"[i % 2], "gold": str(i % 2)} for i in range(800)]
    kind = with_rollouts(PPOTrainer) if fast else PPOTrainer
    trainer = kind(
        model=build_model(tokenizer, size),
        reward_funcs=[reward],
        args=PPOConfig(**given),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_dense_reward_rises(tmp_path: Path, lora: bool) -> None:
    rate = 1e-2 if lora else 3e-3
    trainer = build(
        tmp_path,
        lora=lora,
        per_device_train_batch_size=32,
        num_mini_batches=2,
        num_ppo_epochs=2,
        kl_coef=0.001,
        learning_rate=rate,
        max_steps=80,
    )
    trainer.train()
    rewards = logged(trainer, "reward")
    assert len(rewards) == 20  # one batch of rollouts in four updates
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.25
    assert logged(trainer, "kl")[0] == 0  # the reference is where the policy starts
    assert logged(trainer, "kl")[-1] > 0.1
    row = trainer.state.log_history[0]
    assert {
        "reward_std",
        "rewards/share_of_low_tokens/mean",
        "completions/mean_length",
        "completions/clipped_ratio",
        "entropy",
        "clip_ratio/region_mean",
        "policy_loss",
        "value_loss",
        "approx_kl",
    } <= set(row)
    assert "frac_reward_zero_std" not in row
    assert row["approx_kl"] == pytest.approx(0, abs=1e-6)  # first update: the policy that sampled
    assert logged(trainer, "approx_kl")[3] > 1e-6


def test_a_strong_kl_penalty_keeps_the_policy_at_the_reference(tmp_path: Path) -> None:
    furthest = []
    for kl_coef in (1e-6, 2.0):
        trainer = build(
            tmp_path, kl_coef=kl_coef, learning_rate=1e-3, num_ppo_epochs=2, max_steps=40
        )
        trainer.train()
        furthest.append(max(logged(trainer, "kl")))
    assert 0 < furthest[1] < 0.5 * furthest[0]


def test_a_value_knows_what_came_before_its_token_only(tmp_path: Path) -> None:
    import torch

    trainer = build(tmp_path)
    torch.nn.init.normal_(trainer.value_head.weight)
    ids = torch.arange(65, 75).unsqueeze(0)

    def values(ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        output = trainer.model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
        assert output["log_probs"].shape == output["value"].shape == (1, 9)
        return output["value"][0]

    other = ids.clone()
    other[0, 6] = 100
    # Entry t belongs to token t + 1, so token 6 is first seen by the value of token 7.
    changed = (values(ids) - values(other)).abs() > 1e-6
    assert changed.tolist() == [False] * 6 + [True] * 3


def test_the_critic_learns_which_prompts_pay(tmp_path: Path) -> None:
    def by_prompt(gold: Sequence[str], **_: Any) -> list[float | None]:
        return [float(g) for g in gold]

    trainer = build(
        tmp_path,
        by_prompt,
        max_completion_length=4,
        lam=1.0,
        kl_coef=0.0,
        vf_coef=1.0,
        cliprange_value=None,
        max_steps=100,
    )
    trainer.train()
    explained = logged(trainer, "explained_variance")
    assert explained[0] == pytest.approx(0, abs=1e-6)  # a head of zeros
    assert sum(explained[-5:]) / 5 > 0.5


@pytest.mark.parametrize("rate", [None, 0.5])
def test_the_value_head_may_have_a_rate_of_its_own(tmp_path: Path, rate: float | None) -> None:
    trainer = build(tmp_path, value_learning_rate=rate)
    trainer.create_optimizer()
    rates = {
        id(parameter): group["lr"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == len(list(trainer.model.parameters()))
    assert {rates[id(p)] for p in trainer.value_head.parameters()} == {rate or 3e-3}
    assert rates[id(trainer.model.lm_head.weight)] == 3e-3


def test_rewards_of_none_teach_nothing(tmp_path: Path) -> None:
    import torch

    trainer = build(tmp_path, lambda completion_ids, **_: [None] * len(completion_ids))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert "reward" not in trainer.state.log_history[0] or logged(trainer, "reward")[0] is None


def test_a_reward_of_none_leaves_out_its_rollout_only(tmp_path: Path) -> None:
    def for_odd_prompts(gold: Sequence[str], **_: Any) -> list[float | None]:
        return [1.0 if g == "1" else None for g in gold]

    trainer = build(tmp_path, for_odd_prompts, max_steps=1, lam=1.0, kl_coef=0.0)
    trainer.train()
    (batch,) = trainer._buffered_inputs
    kept = batch["loss_mask"].any(dim=1)
    assert 0 < kept.sum() < len(kept)
    assert logged(trainer, "reward") == [1.0]
    assert set(batch["returns"][:, 0].tolist()) == {0.0, 1.0}
    assert not batch["advantages"][~kept].any()


def test_evaluation_trains_nothing_and_logs_the_reward(tmp_path: Path) -> None:
    trainer = build(tmp_path, per_device_eval_batch_size=5)
    trainer.evaluate(trainer.train_dataset.select(range(10)))
    assert 0 < logged(trainer, "eval_reward")[0] < 1
    assert not trainer.value_head.weight.any()


def test_what_was_cut_off_pays_the_penalty(tmp_path: Path) -> None:
    def ended(completion_ids: Sequence[list[int]], **_: Any) -> list[float | None]:
        return [2.0] * len(completion_ids)

    # So many random tokens that some completions end by themselves, and so few that some do not.
    trainer = build(
        tmp_path,
        ended,
        per_device_train_batch_size=64,
        max_completion_length=100,
        missing_eos_penalty=0.5,
        kl_coef=0.0,
        lam=1.0,
        max_steps=1,
    )
    trainer.train()
    (batch,) = trainer._buffered_inputs
    length = batch["completion_mask"].sum(dim=1, keepdim=True)
    last = batch["completion_ids"].gather(1, length - 1).squeeze(1)
    earned = batch["returns"][:, 0]
    finished = last == trainer.processing_class.eos_token_id
    assert 0 < finished.sum() < len(finished)
    assert set(earned[finished].tolist()) == {2.0}
    assert set(earned[~finished].tolist()) == {1.5}


def test_accumulated_gradients_are_the_whole_batchs(tmp_path: Path) -> None:
    norms = []
    for accumulated in (1, 4):
        trainer = build(
            tmp_path,
            per_device_train_batch_size=16 // accumulated,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
        )
        trainer.train()
        norms += logged(trainer, "grad_norm")
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_fast_sampler_serves_ppo(tmp_path: Path, epochs: int) -> None:
    trainer = build(tmp_path, fast=True, num_ppo_epochs=epochs, max_steps=2)
    trainer.train()
    assert max(logged(trainer, "rollout/logp_gap_max")) < 1e-4
    # The canary scores a few rollouts first; the old values are those of all the same.
    assert trainer._buffered_inputs[0]["old_values"].shape == (16, WIDTH)
    assert logged(trainer, "approx_kl")[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_values_are_float32_where_the_model_computes_in_bfloat16(
    tmp_path: Path, lora: bool
) -> None:
    import torch

    trainer = build(tmp_path, lora=lora, bf16=True, gradient_checkpointing=True, max_steps=5)
    trainer.train()
    (batch,) = trainer._buffered_inputs
    values = batch["old_values"]
    assert values.dtype == torch.float32
    assert (values != values.bfloat16()).any()  # nor were they rounded on the way
    assert logged(trainer, "approx_kl")[0] < 1e-3


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, lora: bool) -> None:
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_save(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    # Four updates a batch of rollouts, so the save falls into the middle of one.
    options = {
        "lora": lora,
        "per_device_train_batch_size": 8,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "value_learning_rate": 1e-2,
        "max_steps": 10,
        "save_strategy": "steps",
        "save_steps": 6,
    }
    whole = build(tmp_path / "whole", **options)
    whole.train()
    killed = build(tmp_path / "killed", **options)
    killed.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = build(tmp_path / "killed", **options)
    resumed.train(resume_from_checkpoint=True)
    assert [row["step"] for row in resumed.state.log_history[:10]] == list(range(1, 11))
    names = ("loss", "grad_norm", "reward", "kl", "entropy", "value_loss", "approx_kl")
    for one, other in zip(resumed.state.log_history[:10], whole.state.log_history, strict=False):
        assert {n: one.get(n) for n in names} == {n: other.get(n) for n in names}
    (tmp_path / "killed" / "checkpoint-6" / "ppo_0.pt").unlink()
    with pytest.raises(CheckpointError, match="the critic cannot go on"):
        build(tmp_path / "killed", **options).train(
            resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-6")
        )


def test_what_is_saved_is_a_plain_causal_lm(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    trainer = build(tmp_path)
    trainer.train()
    assert trainer.value_head.weight.any()
    trainer.save_model(str(tmp_path / "model"))
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved and not any("value_head" in name for name in saved)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    again, report = loaded
    assert not any(report.values())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name))


def test_vllm_is_sent_no_value_head(tmp_path: Path) -> None:
    from trl.distributed import DistributedBackend
    from trl.generation.vllm_generation import VLLMGeneration

    from thinkgate_train.ppo import hide_value_head

    trainer = build(tmp_path)
    generation: Any = object.__new__(VLLMGeneration)  # its constructor starts an engine
    generation.model, generation._dist = trainer.model, DistributedBackend(trainer.accelerator)
    assert "value_head.weight" in dict(generation._iter_named_params())
    hide_value_head(generation)
    assert set(dict(generation._iter_named_params())) == set(trainer.model.state_dict()) - {
        "lm_head.weight"  # tied to the embedding
    }


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    import torch

    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *command, __file__, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"weights_{rank}.pt") for rank in (0, 1))
    assert one["value_head.weight"].any()
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name
    states = [torch.load(tmp_path / "checkpoint-2" / f"ppo_{rank}.pt") for rank in (0, 1)]
    rollouts = [state["rollouts"][0]["completion_ids"] for state in states]
    assert rollouts[0].shape[0] == 8
    assert rollouts[0].tolist() != rollouts[1].tolist()


def _process(folder: Path) -> None:
    """One of two processes; runs under torch.distributed.run."""
    import torch

    trainer = build(
        folder,
        per_device_train_batch_size=8,
        num_ppo_epochs=2,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    weights = dict(trainer.model.named_parameters())
    torch.save(weights, folder / f"weights_{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    _process(Path(sys.argv[1]))
