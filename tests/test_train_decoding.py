"""Sampling: exactly the model's distribution, and the same tokens as transformers' generate."""

import copy
import itertools
from typing import Any

import pytest
import scipy.stats
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from thinkgate.errors import ConfigError, TrainingError
from thinkgate_train.decoding import Samples, obstacle, sample

PAD, EOS = 0, 1
SIZE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,  # a flat distribution would hide mistakes
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": EOS,
}
# Of different lengths, in no order, some several times and not side by side.
PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13, 14, 15], [4], [5, 6, 7], [4], [5, 6, 7], [8, 8]]


def qwen3(**changes: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZE, "head_dim": 8, **changes}))


def sliding() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**{**SIZE, "sliding_window": 6}))


def gpt2() -> PreTrainedModel:
    size: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    same = ("vocab_size", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")
    return GPT2LMHeadModel(GPT2Config(**size, **{key: SIZE[key] for key in same}))


def lora() -> Any:
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(
        qwen3(), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules="all-linear")
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at the start, when the adapter does nothing
            torch.nn.init.normal_(weight, std=0.2)
    return model


MODELS = {"qwen3": qwen3, "sliding": sliding, "gpt2": gpt2, "lora": lora}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    set_seed(0)
    return MODELS[request.param]()


def draw(model: Any, prompts: list[list[int]] = PROMPTS, **changes: Any) -> Samples:
    options: dict[str, Any] = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "eos_ids": [EOS],
        "pad_id": PAD,
    }
    return sample(model, prompts, **{**options, **changes})


def teacher_forced(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits at every token of `completion`, of one row without padding or cache."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    model.train(was_training)
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("eos", [[EOS, 2, 3], []])
def test_greedy_gives_what_generate_gives(model: Any, eos: list[int]) -> None:
    # Without an end, 80 tokens: the cache outgrows its room twice, the sliding window often.
    model.eval()
    model.generation_config.eos_token_id = None
    width = max(map(len, PROMPTS))
    padded = torch.tensor([[PAD] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    generated = model.generate(
        input_ids=padded,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=80,
        eos_token_id=eos or None,
        pad_token_id=PAD,
    )[:, width:].tolist()
    ours = draw(model, temperature=0.0, max_new_tokens=80, eos_ids=eos).completion_ids
    for mine, theirs in zip(ours, generated, strict=True):
        ended = next((i + 1 for i, token in enumerate(theirs) if token in eos), len(theirs))
        assert mine == theirs[:ended]
    assert len(set(map(len, ours))) > 2 if eos else {len(ids) for ids in ours} == {80}


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_log_probabilities_are_those_of_a_teacher_forced_pass(
    model: Any, temperature: float
) -> None:
    set_seed(1)
    drawn = draw(model, temperature=temperature, max_new_tokens=80, eos_ids=[EOS, 2])
    assert len({len(ids) for ids in drawn.completion_ids}) > 2  # rows left at different times
    for prompt, ids, logps in zip(PROMPTS, drawn.completion_ids, drawn.logps, strict=True):
        logits = teacher_forced(model, prompt, ids) / temperature
        exact = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        assert torch.allclose(exact, torch.tensor(logps), atol=1e-4)


def test_completions_are_drawn_from_the_exact_distribution() -> None:
    """Chi-square over every completion of two tokens, an end after the first included."""
    set_seed(0)
    model = qwen3(vocab_size=7, hidden_size=16, initializer_range=0.25)
    prompts = [[3, 4, 5], [6]]
    copies, temperature = 8_000, 0.7
    set_seed(2)
    batch = [prompts[i % 2] for i in range(2 * copies)]
    drawn = draw(model, batch, max_new_tokens=2, temperature=temperature)
    for which, prompt in enumerate(prompts):
        seen = [tuple(ids) for ids in drawn.completion_ids[which::2]]
        assert p_value(model, prompt, seen, temperature) > 0.01
        assert p_value(model, prompt, seen, 1.0) < 1e-9  # the test sees a wrong temperature


def p_value(
    model: Any, prompt: list[int], seen: list[tuple[int, ...]], temperature: float
) -> float:
    vocabulary = range(model.config.vocab_size)
    first = (teacher_forced(model, prompt, [0])[0] / temperature).softmax(-1).tolist()
    chances: dict[tuple[int, ...], float] = {(EOS,): first[EOS]}
    for a, b in itertools.product(vocabulary, vocabulary):
        if a != EOS:
            second = (teacher_forced(model, prompt, [a, 0])[1] / temperature).softmax(-1)
            chances[a, b] = first[a] * float(second[b])
    assert set(seen) <= set(chances)
    rare = [key for key, chance in chances.items() if chance * len(seen) < 5]
    common = [key for key in chances if key not in rare]
    observed = [seen.count(key) for key in common]
    expected = [chances[key] * len(seen) for key in common]
    if rare:
        observed.append(sum(seen.count(key) for key in rare))
        expected.append(len(seen) * sum(chances[key] for key in rare))
    scale = sum(observed) / sum(expected)  # rounding only
    return float(scipy.stats.chisquare(observed, [scale * e for e in expected]).pvalue)


def test_a_completion_ends_with_its_first_eos_or_at_the_limit(model: Any) -> None:
    set_seed(3)
    eos = {EOS, 5}
    drawn = draw(model, PROMPTS * 8, max_new_tokens=10, eos_ids=eos)
    ends = [ids[-1] in eos for ids in drawn.completion_ids]
    assert any(ends) and not all(ends)
    for ids, logps, ended in zip(drawn.completion_ids, drawn.logps, ends, strict=True):
        assert len(ids) == len(logps) <= 10
        assert not eos & set(ids[:-1])
        assert ended or len(ids) == 10


def test_copies_are_read_once_and_finished_rows_leave() -> None:
    set_seed(0)
    model = qwen3()
    shapes: list[torch.Size] = []

    def see(_module: Any, _args: Any, named: dict[str, Any]) -> None:
        assert not torch.is_grad_enabled()  # memory for a backward pass that never comes
        shapes.append(named["input_ids"].shape)

    model.register_forward_pre_hook(see, with_kwargs=True)
    drawn = draw(model, PROMPTS * 8, max_new_tokens=30, eos_ids=[EOS, 2, 3])
    assert shapes[0] == (4, 7)  # the distinct prompts
    lengths = [len(ids) for ids in drawn.completion_ids]
    # After step k only rows with more than k tokens are computed.
    live = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert [tuple(shape) for shape in shapes[1:]] == [(rows, 1) for rows in live]


def test_the_model_is_left_as_it_was_found(model: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    model.train()
    first = draw(model, temperature=0.0)
    assert model.training and all(module.training for module in model.modules())
    model.eval()
    assert draw(model, temperature=0.0) == first  # dropout was off
    assert not model.training and ALL_ATTENTION_FUNCTIONS["sdpa"] is attention
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradient_checkpointing_and_use_cache_do_not_matter() -> None:
    set_seed(0)
    model = qwen3()
    plain = draw(model, temperature=0.0)
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    assert draw(model, temperature=0.0) == plain
    assert model.is_gradient_checkpointing


def test_a_seed_decides_the_draws(model: Any) -> None:
    set_seed(5)
    first = draw(model)
    set_seed(5)
    assert draw(model) == first
    assert draw(model).completion_ids != first.completion_ids  # torch's state has moved on
    one, other = (torch.Generator().manual_seed(9) for _ in range(2))
    state = torch.get_rng_state()
    assert draw(model, generator=one) == draw(model, generator=other)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_are_no_numbers_are_one_sentence() -> None:
    model: Any = qwen3()
    with torch.no_grad():
        model.get_output_embeddings().weight[0] = float("nan")
    model.train()
    with pytest.raises(TrainingError, match=r"logits are NaN or infinite.*lower trl.learning_rate"):
        draw(model)
    assert model.training


def test_a_model_that_cannot_be_sampled_from_is_refused() -> None:
    size: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=24, **size))
    assert obstacle(qwen3()) is None
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration is an encoder-decoder"):
        draw(model)
