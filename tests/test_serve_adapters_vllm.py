"""A LoRA adapter on real vLLM: its name answers otherwise than its base, in the same batch."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from conftest import LESSONS, learn
from fake_checkpoint import make_checkpoint, record_decision
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from thinkgate.checkpoint import ADAPTER, META, load_checkpoint
from thinkgate.errors import CheckpointError, ServerError
from thinkgate.registry import Registry
from thinkgate_clients.local import local_server
from thinkgate_serve.adapters import find_adapters
from thinkgate_serve.auth import add_key
from thinkgate_serve.card import Card, find_target

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
SAYS = "<think>7+8=16</think>16"


@pytest.fixture(scope="module")
def trained(gated_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated checkpoint trained with LoRA from the tiny one; its adapter says `SAYS`."""
    folder = tmp_path_factory.mktemp("lora")
    tokenizer: Any = AutoTokenizer.from_pretrained(gated_checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(gated_checkpoint)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: PeftModel = get_peft_model(model, config)  # type: ignore[assignment]
    # The frozen embedding bounds how sure it can be; greedy decoding needs no more than this.
    learn(adapted, tokenizer, {"closed": SAYS}, until=0.05)
    adapted.save_pretrained(str(folder / "adapter"))
    merged = adapted.merge_and_unload()  # type: ignore[operator]
    checkpoint = make_checkpoint(
        folder / "grpo",
        merged,
        tokenizer,
        adapter=folder / "adapter",
        parent=load_checkpoint(gated_checkpoint).digest,
    )
    record_decision(checkpoint)
    return checkpoint


def test_base_and_adapter_answer_side_by_side(gated_checkpoint: Path, trained: Path) -> None:
    said: dict[str, set[str]] = {"tiny": set(), "sixteen": set()}
    with local_server(gated_checkpoint, extra=["--lora", f"sixteen={trained}"]) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        digests = {model.id: model.digest for model in client.models.list()}  # type: ignore[attr-defined]
        assert digests == {
            "tiny": load_checkpoint(gated_checkpoint).digest,
            "sixteen": load_checkpoint(trained).digest,
        }

        def ask(name: str) -> None:
            raw = client.chat.completions.with_raw_response.create(
                model=name, messages=[{"role": "user", "content": "closed"}], temperature=0
            )
            message: Any = raw.parse().choices[0].message
            assert raw.headers["x-thinkgate-model-digest"] == digests[name]
            said[name].add(f"<think>{message.reasoning_content}</think>{message.content}")

        threads = [threading.Thread(target=ask, args=(name,)) for name in list(said) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == {"tiny": {LESSONS["closed"]}, "sixteen": {SAYS}}


def test_an_adapter_alias_moves_in_the_place_of_the_old_one_and_back(
    gated_checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    """One deploy that loads no adapter and goes back, then one that loads another."""
    tokenizer: Any = AutoTokenizer.from_pretrained(gated_checkpoint)
    registry = Registry(tmp_path / "registry")
    registry.promote("production", gated_checkpoint)
    registry.promote("sixteen", trained)
    key = add_key(tmp_path / "keys.yaml", "ops", admin=True)
    extra = ["--lora", "sixteen=sixteen", "--deploy", "replace", "--no-watch"]
    extra += ["--keys", str(tmp_path / "keys.yaml")]
    with local_server("production", registry=registry.root, extra=extra) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0)
        admin = httpx.Client(
            base_url=server.base_url.removesuffix("/v1"), headers={"authorization": f"Bearer {key}"}
        )

        def says(name: str) -> str:
            reply: Any = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "closed"}], temperature=0
            )
            message = reply.choices[0].message
            return f"<think>{message.reasoning_content}</think>{message.content}"

        def deploy(adapter: Path) -> dict[str, Any]:
            """`adapter` as what "sixteen" is now; how its deploy went."""
            checkpoint = make_checkpoint(
                tmp_path / f"of-{adapter.name}",
                tokenizer=tokenizer,
                config=f'{{"x": "{adapter.name}"}}',
                adapter=adapter,
                parent=load_checkpoint(gated_checkpoint).digest,
            )
            record_decision(checkpoint)
            registry.promote("sixteen", checkpoint)
            count = len(admin.get("/admin/deploy").json()["past"])
            assert admin.post("/admin/deploy").status_code == 202
            deadline = time.monotonic() + 120
            while len(past := admin.get("/admin/deploy").json()["past"]) == count:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            return past[0]

        assert says("sixteen") == SAYS
        broken = shutil.copytree(trained / META / ADAPTER, tmp_path / "broken")
        config = json.loads((broken / "adapter_config.json").read_text())
        (broken / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
        attempt = deploy(broken)
        assert attempt["outcome"] == "load_failed"
        assert "vLLM cannot load the adapter" in attempt["why"]
        assert (says("production"), says("sixteen")) == (LESSONS["closed"], SAYS)

        silent = shutil.copytree(trained / META / ADAPTER, tmp_path / "silent")
        weights = load_file(silent / WEIGHTS)
        save_file({name: w * 0 for name, w in weights.items()}, silent / WEIGHTS)
        attempt = deploy(silent)
        assert (attempt["outcome"], attempt["placement"]) == ("deployed", "replace")
        assert says("sixteen") == says("production") == LESSONS["closed"]


def test_an_adapter_of_a_deeper_model_is_refused(
    gated_checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    """vLLM loads it, and answers as the base. As PEFT wrote it, it fits."""
    registry = Registry(tmp_path / "registry")
    base = find_target(str(gated_checkpoint), registry=registry, allow_ungated=True)
    adapter = shutil.copytree(trained / META / ADAPTER, tmp_path / "plain")

    def find() -> Card:
        wanted = {"x": str(adapter)}
        (card,) = find_adapters(wanted, base, registry=registry, allow_ungated=True)
        return card

    assert find().adapter == adapter
    weights = load_file(adapter / WEIGHTS)
    deeper = {name.replace("layers.", "layers.9"): weight for name, weight in weights.items()}
    save_file(deeper, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match="no weight for any module"):
        find()


def test_an_adapter_vllm_cannot_load_ends_the_start(
    gated_checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    source = trained / "thinkgate" / "adapter"
    (broken / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    extra = ["--lora", f"x={broken}"]
    with (
        pytest.raises(ServerError, match="vLLM cannot load the adapter"),
        local_server(gated_checkpoint, allow_ungated=True, extra=extra),
    ):
        pass
