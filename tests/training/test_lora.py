"""The LoRA layer and adapter: deltas against plain MLX, gradients, merging, folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metal_candle import CheckpointError, LazyTensor, ModelError, Tensor, TrainingError
from metal_candle.models import load_model
from metal_candle.training import (
    LoRAAdapter,
    LoRAAdapterConfig,
    LoRAConfig,
    LoRALayer,
    TargetModule,
    merged_weights,
)

import mlx.core as mx
import numpy as np
import pytest


def trained(layer: LoRALayer, seed: int = 0) -> LoRALayer:
    """The layer with a B that is not zero."""
    b = np.random.default_rng(seed).standard_normal(layer.lora_b().shape).astype(np.float32)
    layer.lora_b().set(Tensor.from_numpy(0.1 * b))
    return layer


@pytest.mark.parametrize(
    ("shape", "sizes", "rank"),
    [
        ((1, 16), (16, 16), 4),
        ((8, 64), (64, 32), 8),
        ((5, 123), (123, 41), 16),
        ((2, 3, 8), (8, 12), 2),
        ((8,), (8, 4), 1),
    ],
)
def test_the_delta_equals_plain_mlx(shape: tuple[int, ...], sizes: tuple[int, int], rank: int) -> None:
    layer = trained(LoRALayer(*sizes, LoRAConfig(rank=rank, alpha=4.0)))
    x = (np.random.default_rng(1).standard_normal(shape) / np.sqrt(sizes[0])).astype(np.float32)
    expected = np.array((4.0 / rank) * (mx.array(x) @ layer.lora_a().mlx() @ layer.lora_b().mlx()))
    eager = layer.forward(Tensor.from_numpy(x))
    lazy = layer.forward_lazy(LazyTensor.from_tensor(Tensor.from_numpy(x)))
    assert isinstance(eager, Tensor)
    assert isinstance(lazy, LazyTensor)
    assert tuple(lazy.shape) == (*shape[:-1], sizes[1])
    np.testing.assert_allclose(eager.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(lazy.eval().numpy(), expected, atol=1e-6)
    base = Tensor.ones((*shape[:-1], sizes[1]))
    np.testing.assert_allclose(layer.apply(base, Tensor.from_numpy(x)).numpy(), 1 + expected, atol=1e-6)


def test_gradients_at_the_start_and_against_differences() -> None:
    layer = LoRALayer(6, 5, LoRAConfig(rank=2, alpha=3.0))
    x = Tensor.from_numpy(np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))
    grads = layer(x).sqr().sum_all().backward()
    assert np.array_equal(grads[layer.lora_a()].numpy(), np.zeros((6, 2)))  # B is zero
    trained(layer)
    grads = layer(x).sqr().sum_all().backward()
    a, b, x64 = (t.numpy().astype(np.float64) for t in (layer.lora_a(), layer.lora_b(), x))

    def loss(a: np.ndarray, b: np.ndarray) -> float:
        return float(((1.5 * x64 @ a @ b) ** 2).sum())

    for var, value, at in ((layer.lora_a(), a, 0), (layer.lora_b(), b, 1)):
        numeric = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            shifted = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * 1e-6
                shifted.append(loss(*((moved, b) if at == 0 else (a, moved))))
            numeric[index] = (shifted[0] - shifted[1]) / 2e-6
        # float32 against float64: relative to the largest entry
        np.testing.assert_allclose(grads[var].numpy(), numeric, atol=1e-5 * np.abs(numeric).max())


def test_the_lazy_path_gives_the_same_gradients() -> None:
    layer = trained(LoRALayer(6, 5, LoRAConfig(rank=2)))
    x = Tensor.from_numpy(np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))
    eager = layer(x).sqr().sum_all().backward()
    lazy = layer.forward_lazy(LazyTensor.from_tensor(x)).sqr().sum_all().backward()
    for var in layer.trainable_variables():
        np.testing.assert_allclose(lazy[var].numpy(), eager[var].numpy(), rtol=1e-6)


def test_the_starts() -> None:
    normal = LoRALayer(256, 64, LoRAConfig(rank=16))
    assert normal.lora_a().numpy().std() == pytest.approx(0.25, rel=0.1)  # 1 / sqrt(16), 4,096 draws
    uniform = LoRALayer(256, 64, LoRAConfig(rank=16, init="uniform")).lora_a().numpy()
    assert 0.95 / 16 < np.abs(uniform).max() <= 1 / 16
    assert not normal.lora_b().numpy().any()
    assert normal.num_parameters() == 16 * (256 + 64)
    assert normal.is_training()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (LoRAConfig(rank=0), "rank is 0; takes at least 1"),
        (LoRAConfig(alpha=0.0), "alpha is 0.0; takes more than 0"),
        (LoRAConfig(dropout=1.0), "dropout is 1.0; takes 0 <= dropout < 1"),
        (LoRAConfig(rank=9), "rank is 9 for a layer of 8 to 16; takes at most the smaller"),
    ],
)
def test_a_wrong_configuration_is_refused(config: LoRAConfig, text: str) -> None:
    with pytest.raises(TrainingError.InvalidLoRAConfig, match=text):
        LoRALayer(8, 16, config)


def test_forward_lazy_refuses_an_eager_tensor() -> None:
    with pytest.raises(TypeError, match="forward_lazy: got a Tensor; takes a LazyTensor"):
        LoRALayer(4, 4, LoRAConfig(rank=2)).forward_lazy(Tensor.zeros((1, 4)))  # type: ignore[arg-type]


def test_dropout_is_inverted_and_off_in_eval_mode() -> None:
    layer = LoRALayer(8, 8, LoRAConfig(rank=8, alpha=8.0, dropout=0.5))
    layer.lora_b().set(Tensor.eye(8))
    x = Tensor.ones((64, 8))
    layer.eval()
    expected = layer(x).numpy()
    layer.set_training(True)
    dropped = layer(x).numpy()
    kept = dropped != 0
    assert 0.4 < kept.mean() < 0.6  # 512 draws of one half
    np.testing.assert_allclose(dropped[kept], 2 * expected[kept], rtol=1e-5)


def test_adapter_keys_sizes_and_places(tiny_model_dir: Callable[..., Path]) -> None:
    model = load_model(tiny_model_dir()).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2))
    keys = [f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")]
    assert [key for key, _ in adapter.layers()] == keys
    value = adapter.get_layer(0, TargetModule.VProj)
    assert value is not None
    assert value.out_features() == 16  # two key-value heads of 8
    assert adapter.get_layer(0, TargetModule.OProj) is None
    assert adapter.num_trainable_parameters() == 2 * 2 * ((32 + 32) + (32 + 16))
    assert adapter.num_frozen_parameters(10) == 0
    plain = LoRAAdapter(32, 64, 3, LoRAAdapterConfig(rank=2, target_modules=(TargetModule.DownProj,)))
    down = plain.get_layer(2, TargetModule.DownProj)
    assert down is not None
    assert (down.in_features(), down.out_features()) == (64, 32)
    with pytest.raises(ModelError.InvalidConfig, match="the adapter spans 3 layers, the model has 2"):
        model.apply_adapter(plain)
    assert not model.has_adapter()


def test_applying_merging_and_removing_agree(tiny_model_dir: Callable[..., Path]) -> None:
    model = load_model(tiny_model_dir()).model
    ids = Tensor([[3, 4, 5, 6]])
    plain = model(ids).numpy()
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2, target_modules=tuple(TargetModule)))
    model.apply_adapter(adapter)
    np.testing.assert_allclose(model(ids).numpy(), plain, atol=1e-6)  # B is zero
    for i, (_, layer) in enumerate(adapter.layers()):
        trained(layer, i)
    adapted = model(ids).numpy()
    assert np.abs(adapted - plain).max() > 1e-2
    merged = merged_weights(model, adapter)
    model.remove_adapter()
    np.testing.assert_allclose(model(ids).numpy(), plain, atol=1e-6)
    for projection in model.projections():
        projection.linear._weight = merged[f"{projection.path}.weight"]
    np.testing.assert_allclose(model(ids).numpy(), adapted, atol=1e-5)  # one product more is rounded


def test_a_saved_adapter_comes_back(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = load_model(tiny_model_dir()).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(3, 12.0, 0.1, (TargetModule.KProj, TargetModule.UpProj)))
    for i, (_, layer) in enumerate(adapter.layers()):
        trained(layer, i)
    adapter.save(tmp_path / "adapter", "somewhere")
    again = LoRAAdapter.load(tmp_path / "adapter", model)
    assert (again.config().rank, again.config().alpha, again.config().dropout) == (3, 12.0, 0.1)
    for (key, layer), (other_key, other) in zip(adapter.layers(), again.layers()):
        assert key == other_key
        assert np.array_equal(layer.lora_a().numpy(), other.lora_a().numpy())
        assert np.array_equal(layer.lora_b().numpy(), other.lora_b().numpy())
        assert layer.config().scaling() == pytest.approx(other.config().scaling())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_hidden_layers": 1}, "this one has no model.layers.1.self_attn.q_proj"),
        ({"hidden_size": 64, "head_dim": 16}, "q_proj maps 32 to 32 there, 64 to 64 here"),
    ],
)
def test_an_adapter_for_another_model_is_refused(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, settings: dict[str, int], text: str
) -> None:
    model = load_model(tiny_model_dir()).model
    LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2)).save(tmp_path / "adapter")
    other = load_model(tiny_model_dir(**settings)).model
    with pytest.raises(CheckpointError.InvalidFormat, match=text):
        LoRAAdapter.load(tmp_path / "adapter", other)
