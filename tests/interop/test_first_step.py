"""The first step of mlx-lm and of PEFT on the same model, adapter and batch: loss, gradients, and logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Tensor
from metal_candle.models import LoadedModel, load_model
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule
from metal_candle.training.batch_loss import batch_loss, targets_of
from metal_candle.training.data import Batch

import mlx.core as mx
import numpy as np
import pytest

# The other programs' libraries warn when they are imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RANK, ALPHA = 4, 8.0
ALL = tuple(TargetModule)
# float32 through differently ordered sums; relative to a gradient's largest entry
LOSS, GRADIENT, LOGITS = 2e-5, 2e-4, 2e-4


def adapted(folder: Path) -> tuple[LoadedModel, LoRAAdapter]:
    """The model with an adapter whose B is not zero."""
    loaded = load_model(folder)
    adapter = LoRAAdapter.for_model(loaded.model, LoRAAdapterConfig(RANK, ALPHA, 0.0, ALL))
    rng = np.random.default_rng(0)
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.from_numpy(0.1 * rng.standard_normal(layer.lora_b().shape).astype(np.float32)))
    loaded.model.apply_adapter(adapter)
    return loaded, adapter


def one_batch(vocabulary: int) -> Batch:
    rng = np.random.default_rng(1)
    ids = rng.integers(3, vocabulary, (2, 18)).astype(np.int32)
    mask = np.ones((2, 17), bool)
    mask[:, :5] = False
    return Batch(ids[:, :-1], ids[:, 1:], mask)


def ours(loaded: LoadedModel, adapter: LoRAAdapter, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients, by ``path.a`` (in, rank) and ``path.b`` (rank, out)."""
    loss = batch_loss(loaded.model, *targets_of(batch, batch.trained_tokens).tensors())
    grads = loss.backward()
    named = {}
    for place in loaded.model.projections():
        layer = adapter.get_layer(place.layer, place.target)
        assert layer is not None
        named[f"{place.path}.a"] = grads[layer.lora_a()].numpy()
        named[f"{place.path}.b"] = grads[layer.lora_b()].numpy()
    return float(loss), named


def agree(mine: tuple[float, dict[str, np.ndarray]], loss: float, gradients: dict[str, np.ndarray]) -> None:
    assert mine[0] == pytest.approx(loss, abs=LOSS)
    assert set(mine[1]) == set(gradients)
    for name, gradient in gradients.items():
        bound = GRADIENT * np.abs(gradient).max()
        np.testing.assert_allclose(mine[1][name], gradient, atol=bound, err_msg=name)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_mlx_lm(tiny_model_dir: Callable[..., Path], model_type: str) -> None:
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model as load_mlx_lm

    folder = tiny_model_dir(model_type)
    loaded, adapter = adapted(folder)
    batch = one_batch(64)
    model, _ = load_mlx_lm(folder)
    model.freeze()
    keys = [f"{target.parent}.{target.value}" for target in ALL]
    linear_to_lora_layers(model, 2, {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0, "keys": keys})
    for place in loaded.model.projections():
        layer = adapter.get_layer(place.layer, place.target)
        assert layer is not None
        module = getattr(getattr(model.layers[place.layer], place.target.parent), place.target.value)
        module.lora_a, module.lora_b = layer.lora_a().mlx(), layer.lora_b().mlx()
    inputs, targets, mask = map(mx.array, (batch.inputs, batch.targets, batch.mask))

    def loss(model: Any) -> mx.array:
        return (nn.losses.cross_entropy(model(inputs), targets) * mask).sum() / mask.sum()

    value, grads = nn.value_and_grad(model, loss)(model)
    found = {name.replace(".lora_", "."): np.array(gradient) for name, gradient in tree_flatten(grads)}
    agree(ours(loaded, adapter, batch), float(value), found)


def with_peft(folder: Path, adapter: Path) -> Any:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_peft(tiny_model_dir: Callable[..., Path], tmp_path: Path, model_type: str) -> None:
    folder = tiny_model_dir(model_type)
    loaded, adapter = adapted(folder)
    batch = one_batch(64)
    adapter.save(tmp_path / "adapter", str(folder))
    model = with_peft(folder, tmp_path / "adapter")
    import torch

    inputs, targets, mask = (torch.from_numpy(array.copy()) for array in (batch.inputs, batch.targets, batch.mask))
    logits = model(input_ids=inputs.long()).logits
    labels = torch.where(mask, targets.long(), -100)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path, _, factor = name.removeprefix("base_model.model.").rpartition(".lora_")
            found[f"{path}.{factor[0].lower()}"] = parameter.grad.numpy().T
    agree(ours(loaded, adapter, batch), float(loss.detach()), found)
    expected = logits.detach().numpy()
    np.testing.assert_allclose(loaded.model(Tensor.from_numpy(batch.inputs)).numpy(), expected, atol=LOGITS)


def test_peft_on_the_real_model(smollm2_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from metal_candle.models.save import save_model

    loaded, adapter = adapted(smollm2_gguf)
    adapter.save(tmp_path / "adapter", "smollm2")
    loaded.model.remove_adapter()
    save_model(tmp_path / "base", loaded.model, loaded.tokenizer)
    model = with_peft(tmp_path / "base", tmp_path / "adapter")
    import torch

    ids = loaded.tokenizer.encode("The capital of France is Paris, and the capital of Italy is")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits.numpy()
    plain = loaded.model(Tensor([ids])).numpy()
    loaded.model.apply_adapter(LoRAAdapter.load(tmp_path / "adapter", loaded.model))
    found = loaded.model(Tensor([ids])).numpy()
    assert np.abs(found - plain).max() > 1  # the adapter does something
    # logits of up to 30 through 30 layers in float32
    np.testing.assert_allclose(found, expected, atol=1e-3)
