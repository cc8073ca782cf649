"""A model trained on preferences as a reward; and every reward together in TRL."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Says, ScriptedEndpoint

from thinkgate.errors import CheckpointError
from thinkgate.format import split
from thinkgate_train.rewards import REWARDS, build
from thinkgate_train.rewards.model import RewardModel


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model: its scores are random, but they are its own."""
    return _classifier(tmp_path_factory.mktemp("reward-model"), labels=1)


def _classifier(folder: Path, labels: int) -> Path:
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    from thinkgate_train.scratch import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
        "num_labels": labels,
        "pad_token_id": tokenizer.pad_token_id,
    }
    Qwen3ForSequenceClassification(Qwen3Config(**size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def alone(folder: Path, text: str) -> float:
    """What the model says of a text that nothing is padded to."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        return model(**ids).logits.item()


def test_scores_are_the_models_own_in_any_batch_and_order(trained: Path) -> None:
    prompts = ["1+1", [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2"}], "q"]
    answers = ["2", "it is four, I think", ""]
    rendered = [
        "<|user|>1+1<|assistant|>2<|end|>",
        "<|system|>s<|user|>2+2<|assistant|>it is four, I think<|end|>",
        "<|user|>q<|assistant|><|end|>",
    ]
    expected = [alone(trained, text) for text in rendered]
    assert len(set(expected)) == 3
    for size in (1, 2, 16):
        model = RewardModel(path=str(trained), batch_size=size)
        assert model.score(prompts, answers) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert model.score(prompts[::-1], answers[::-1]) == pytest.approx(
            expected[::-1], rel=1e-4, abs=1e-5
        )
    assert RewardModel(path=str(trained)).score([], []) == []


def test_the_reward_scores_the_answer_part(trained: Path) -> None:
    logged: list[tuple[str, float]] = []
    prompts = [[{"role": "user", "content": "q"}]] * 4
    completions = [
        "<think>a</think>b",
        "<think>z</think>b",
        "<think>cut",
        f"<think></think>{'b' * 300}",
    ]
    reward = build("reward_model", split, {"path": str(trained)})
    got = reward(
        prompts=prompts, completions=completions, log_metric=lambda *metric: logged.append(metric)
    )
    empty = alone(trained, "<|user|>q<|assistant|><|end|>")
    assert got == [pytest.approx(got[0], rel=1e-4)] * 2 + [pytest.approx(empty, rel=1e-4), None]
    assert got[0] == pytest.approx(alone(trained, "<|user|>q<|assistant|>b<|end|>"), rel=1e-4)
    assert logged == [("reward_model/too_long", 0.25)]
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    assert reward(prompts=prompts, completions=messages) == got
    prefilled = functools.partial(split, prefilled=True)
    again = build("reward_model", prefilled, {"path": str(trained)})
    assert again(prompts=prompts[:1], completions=["a</think>b"]) == pytest.approx(
        got[:1], rel=1e-4
    )
    whole = build("reward_model", split, {"path": str(trained), "on": "completion"})
    values = whole(prompts=prompts[:2], completions=completions[:2])
    assert values[0] != pytest.approx(values[1])


def test_clip(trained: Path) -> None:
    def scores(**args: Any) -> list[float | None]:
        reward = build("reward_model", split, {"path": str(trained)} | args)
        return reward(prompts=["q"] * 20, completions=[str(i) for i in range(20)])

    free = [value or 0.0 for value in scores()]
    bound = sorted(map(abs, free))[10]
    assert scores(clip=bound) == pytest.approx(
        [math.copysign(min(abs(v), bound), v) for v in free], rel=1e-4
    )


def test_a_tokenizer_without_a_template(trained: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(trained)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(trained).save_pretrained(tmp_path)
    got = RewardModel(path=str(tmp_path)).score(
        ["say ", [{"role": "user", "content": "say "}]], ["a"] * 2
    )
    assert got == pytest.approx([alone(trained, "say a")] * 2, rel=1e-4)


@pytest.mark.parametrize("kind", ["language model", "two labels", "nothing there", "empty folder"])
def test_what_is_no_reward_model_is_refused(kind: str, tmp_path: Path) -> None:
    from thinkgate_train.scratch import Scratch, build_model, build_tokenizer

    if kind == "language model":
        tokenizer = build_tokenizer()
        size = Scratch(hidden_size=64, intermediate_size=64, layers=1, kv_heads=1)
        build_model(tokenizer, size).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    elif kind == "two labels":
        _classifier(tmp_path, labels=2)
    path = tmp_path / "none" if kind == "nothing there" else tmp_path
    with pytest.raises(CheckpointError, match=f"reward model '{path}'") as caught:
        build("reward_model", split, {"path": str(path)})
    assert "\n" not in str(caught.value)


# In TRL


@pytest.mark.slow
def test_trl_takes_every_reward(trained: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from thinkgate_train.scratch import Scratch, build_model, build_tokenizer

    mine = tmp_path / "mine.py"
    mine.write_text(
        "async def nan(completions, gold, **_):\n"
        "    return [float('nan')] + [1.0] * (len(gold) - 1)\n"
    )
    tokenizer = build_tokenizer()
    size = Scratch(hidden_size=64, intermediate_size=64, layers=1, kv_heads=1)
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}+1"}], "gold": f"{i + 1}"} for i in range(4)
    ]
    options: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "max_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "disable_tqdm": True,
    }
    with ScriptedEndpoint(lambda _: Says("0.5")) as endpoint:
        needed: dict[str, dict[str, Any]] = {
            "cosine_length": {"max_length": 8},
            "soft_overlong": {"max_completion_length": 8, "cache": 4},
            "llm_judge": {"base_url": endpoint.base_url, "model": "m"},
            "reward_model": {"path": str(trained)},
        }
        names = [*REWARDS, f"{mine}:nan"]
        rewards: list[Any] = [build(name, split, needed.get(name, {})) for name in names]
        trainer = GRPOTrainer(
            model=build_model(tokenizer, size),
            args=GRPOConfig(**options),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            reward_funcs=rewards,
        )
        trainer.train()
    row = trainer.state.log_history[0]
    for name in [*REWARDS, "nan"]:
        assert math.isfinite(row[f"rewards/{name}/mean"]), name
    assert 0 < row["rewards/llm_judge/mean"] <= 0.5  # an empty completion is 0 unasked
    assert row["rewards/nan/mean"] == 1
    assert (row["nan/nan"], row["judge/failed"], row["reward_model/too_long"]) == (0.25, 0, 0)
