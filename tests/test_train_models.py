"""Starting models: what a recipe loads can be sampled from and trained."""

from pathlib import Path

import pytest

from thinkgate.config import parse
from thinkgate_train.models import load_start
from thinkgate_train.recipe import Recipe


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_have_gradients_after_sampling(tiny_checkpoint: Path, bits: int) -> None:
    """bitsandbytes packs 4-bit weights for inference on some CPUs; then gradients stop at them."""
    import torch

    recipe = parse(
        Recipe,
        {
            "name": "r",
            "method": "grpo",
            "model": {"path": str(tiny_checkpoint), "quantization": {"bits": bits}},
            "data": {"source": "arithmetic", "half": "train"},
            "rewards": [{"name": "correctness"}],
            "peft": {"r": 4},
        },
        "recipe",
    )
    model = load_start(recipe).model
    ids = torch.arange(40).reshape(2, 20)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()

    def gradient() -> torch.Tensor:
        embedded.grad = None
        model.train()
        logits = model(inputs_embeds=embedded).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        ).backward()
        assert embedded.grad is not None
        return embedded.grad.clone()

    fresh = gradient()
    assert fresh.abs().max() > 0
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    assert torch.allclose(gradient(), fresh, rtol=1e-4, atol=1e-8)
