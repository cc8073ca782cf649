"""The recipes that ship: each says what it needs, and at toy size moves what it says it moves.

`make test` reads them. `make test-recipes` (marker `recipes`) trains every one through
`thinkgate train NAME --toy`; the bases they start from are made once and shared. What a recipe is
for is then measured on held-out prompts, on the weights before and after.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trained

from thinkgate.checkpoint import load_checkpoint
from thinkgate.cli import main
from thinkgate.config import read_yaml
from thinkgate.format import SplitStatus, split
from thinkgate.problems import Arithmetic
from thinkgate.records import read_records
from thinkgate_train.pipeline import load_recipe, load_stages
from thinkgate_train.recipe import RL_METHODS, Prompt
from thinkgate_train.toys import Posts, kindness
from thinkgate_train.trl_options import trl_config

FILES = sorted((Path(__file__).parent.parent / "train" / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in FILES]

# What `--toy` may change in a `trl` section: how far to go, how fast, and how much at once.
SIZES = {
    "adam_beta2",
    "beta",
    "bf16",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "kl_coef",
    "learning_rate",
    "logging_steps",
    "lr_scheduler_type",
    "max_completion_length",
    "max_length",
    "max_steps",
    "num_generations",
    "num_mini_batches",
    "num_ppo_epochs",
    "num_train_epochs",
    "per_device_train_batch_size",
    "value_learning_rate",
    "warmup_steps",
}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_recipe_says_what_it_does_and_needs(path: Path, tmp_path: Path) -> None:
    said = read_yaml(path)
    assert said["name"] == path.stem
    for key in ("description", "hardware", "time"):
        assert said.get(key), f"{path.name} does not say its {key}"
    for stage in load_stages(path.stem, tmp_path):
        if stage.recipe.method != "sample":
            assert stage.recipe.moves, f"{path.name}, stage {stage.name} moves nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_toy_is_the_same_run_on_another_model_and_other_data(name: str, tmp_path: Path) -> None:
    real, toys = (load_stages(name, tmp_path, toy=toy) for toy in (False, True))
    assert [stage.name for stage in real] == [stage.name for stage in toys]
    for one, other in zip(real, toys, strict=True):
        before, after = one.recipe.model_dump(), other.recipe.model_dump()
        differing = {key for key in before if before[key] != after[key]}
        assert differing <= {"model", "data", "prepare", "trl", "sampling", "disk_mib", "toy"}
        changed = {
            key
            for key in before["trl"].keys() | after["trl"].keys()
            if before["trl"].get(key) != after["trl"].get(key)
        }
        assert changed <= SIZES, f"{name}, stage {one.name}: not a matter of size"
        start = other.recipe.model
        assert start.path is None or start.path.startswith(str(tmp_path)), "a toy needs no network"
        assert bool(start.quantization) == bool(one.recipe.model.quantization)
        assert other.recipe.data.source != "hub"
        if other.recipe.method != "sample":
            trl_config(other.recipe, str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_the_base_of_a_toy_has_been_shown_its_prompt(name: str, tmp_path: Path) -> None:
    for stage in load_stages(name, tmp_path, toy=True):
        if stage.recipe.model.recipe is not None and stage.recipe.method in RL_METHODS:
            assert load_recipe(stage.recipe.model.recipe).prompt == stage.recipe.prompt


Train = Callable[[str], Path]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a recipe at toy size, once; all lie in one folder, so that they share their bases."""
    runs = tmp_path_factory.mktemp("recipes")

    def run(name: str) -> Path:
        out = runs / name
        if not out.exists():
            assert main(["train", name, "--toy", "--out", str(out)]) == 0
        return out

    return run


def ends(folder: Path, metric: str) -> tuple[float, float]:
    """A metric's mean over the first fifth of the logged rows, and over the last."""
    rows = [row for _, row in read_records(load_checkpoint(folder).meta("metrics.jsonl"))]
    values = [float(row[metric]) for row in rows if metric in row]
    fifth = max(1, len(values) // 5)
    return statistics.fmean(values[:fifth]), statistics.fmean(values[-fifth:])


def posts(count: int = 256) -> list[dict[str, Any]]:
    """Rows on posts that nothing was trained on."""
    return Posts(source="posts", half="eval", seed=11, count=count).rows()


def summaries(folder: Path, prompt: Prompt | None = None) -> list[str]:
    """What a checkpoint writes about them."""
    return trained.written(folder, [row["prompt"] for row in posts()], prompt)


def distance(texts: list[str], target: int) -> float:
    """How far from the target the lengths are on average, in characters."""
    return statistics.fmean(abs(target - len(text)) for text in texts)


def accuracy(folder: Path, prompt: Prompt, longest: int) -> float:
    """Share of right answers, by the one verifier, on sums that nothing was trained on."""
    half = {"source": "arithmetic", "half": "eval", "seed": 11, "count": 400, "unique": False}
    terms = {"min_terms": longest - 1, "max_terms": longest}
    return trained.accuracy(folder, Arithmetic.model_validate(half | terms), prompt)


def formatted(texts: list[str]) -> float:
    """Share of `<think>…</think><answer>…</answer>`."""
    splits = [split(text) for text in texts]
    return statistics.fmean(
        s.status is SplitStatus.CLOSED
        and str(s.answer).startswith("<answer>")
        and str(s.answer).endswith("</answer>")
        for s in splits
    )


def preferred(folder: Path) -> float:
    """Share of held-out pairs in which a reward model scores the chosen summary higher."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def scores(side: str) -> Any:
        turns = [
            [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row[side]},
            ]
            for row in posts()
        ]
        texts = tokenizer.apply_chat_template(turns, tokenize=False)
        batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            return model(**batch).logits[:, 0]

    return float((scores("chosen") > scores("rejected")).float().mean())


# The quickstart has no toy: it is one, and tests/test_quickstart.py runs it.
TOYS = [name for name in NAMES if not name.startswith(("toy-", "quickstart"))]


@pytest.mark.recipes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TOYS)
def test_a_toy_moves_what_its_recipe_says(name: str, train: Train) -> None:
    out = train(name)
    stages = load_stages(name, out, toy=True)
    assert any(stage.recipe.moves for stage in stages)
    for stage in stages:
        for metric, way in stage.recipe.moves.items():
            before, after = ends(stage.out, metric)
            assert after > before if way == "up" else after < before, (
                f"{stage.name}: {metric} {before:.3g} -> {after:.3g}"
            )


@pytest.mark.recipes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["tldr-length", "smoltldr-lora"])
def test_a_length_reward_moves_lengths_towards_fifty_characters(name: str, train: Train) -> None:
    after = distance(summaries(train(name)), 50)
    before = distance(summaries(train("toy-posts")), 50)
    assert before > 20 and after < 0.7 * before


@pytest.mark.recipes
@pytest.mark.timeout(1800)
def test_think_format_makes_the_format_a_habit(train: Train) -> None:
    prompt = load_recipe("think-format").prompt
    after = formatted(summaries(train("think-format"), prompt))
    before = formatted(summaries(train("toy-tagged"), prompt))
    assert after > before + 0.2


@pytest.mark.recipes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["gsm8k-grpo", "rloo", "ppo", "qlora-7b", "r1-zero"])
def test_rewards_for_right_answers_raise_accuracy_on_new_sums(name: str, train: Train) -> None:
    recipe = load_recipe(name, toy=True)
    assert recipe.model.recipe is not None and isinstance(recipe.data, Arithmetic)
    longest = recipe.data.max_terms
    after = accuracy(train(name), recipe.prompt, longest)
    before = accuracy(train(recipe.model.recipe), recipe.prompt, longest)
    assert 0.2 < before < 0.8
    assert after > before + 0.1


@pytest.mark.recipes
@pytest.mark.timeout(1800)
def test_dpo_prefers_what_was_preferred(train: Train) -> None:
    folder = train("dpo")
    assert ends(folder, "rewards/accuracies")[1] > 0.85
    kinder = [statistics.fmean(map(kindness, summaries(f))) for f in (train("toy-posts"), folder)]
    assert kinder[1] > kinder[0] + 0.03


@pytest.mark.recipes
@pytest.mark.timeout(1800)
def test_a_reward_model_ranks_pairs_it_has_not_seen(train: Train) -> None:
    assert preferred(train("reward-model")) > 0.9


@pytest.mark.recipes
@pytest.mark.timeout(1800)
def test_rlhf_follows_the_rule_behind_the_preferences(train: Train) -> None:
    """By the rule itself, which neither model was told, not by the reward model."""
    folder = train("rlhf")
    before = statistics.fmean(map(kindness, summaries(train("toy-posts"))))
    after = statistics.fmean(map(kindness, summaries(folder / "policy")))
    assert after > before + 0.05
