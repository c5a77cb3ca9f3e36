"""Merging: computed in F32, rounded or quantised again, what that loses measured and warned about."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.dtype import DType
from metal_candle.error import UnsupportedDTypeForOpError
from metal_candle.models import LoadedModel, load_model
from metal_candle.models.save import save_model
from metal_candle.nn.quantized_linear import QuantizedWeight
from metal_candle.tensor.eager import Tensor
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule
from metal_candle.training.merge import Merged, MergedModule, MergeWarning, merge_adapter
from metal_candle.training.requantize import requantized

import mlx.core as mx
import numpy as np
import pytest

IDS = [[3, 4, 5, 6, 7, 8]]
Folder = Callable[..., Path]


def loaded_and_adapted(folder: Path, size: float, **options: Any) -> tuple[LoadedModel, LoRAAdapter]:
    """A model, and an adapter of it whose B are about ``size``."""
    loaded = load_model(folder, **options)
    adapter = LoRAAdapter.for_model(loaded.model, LoRAAdapterConfig(4, 8.0, 0.0, tuple(TargetModule)))
    for number, path in enumerate(adapter.paths()):
        layer = adapter.layer_at(path)
        assert layer is not None
        b = mx.random.normal(layer.lora_b().shape, scale=size, key=mx.random.key(number))
        layer.lora_b().set(Tensor.from_mlx(b))
    adapter.set_training(False)
    return loaded, adapter


def logits(model: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = model.forward(Tensor(IDS)).numpy()
    return found


def numpy(weight: Any) -> np.ndarray[Any, Any]:
    dense = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight.to_dtype(DType.F32)
    found: np.ndarray[Any, Any] = dense.numpy().astype(np.float64)
    return found


def quietly(loaded: LoadedModel, adapter: LoRAAdapter, dtype: Any = DType.F32) -> Merged:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)
        return merge_adapter(loaded.model, adapter, dtype)


@pytest.mark.parametrize("options", [{}, {"quantize": 8, "group_size": 32}, {"quantize": 4, "group_size": 32}])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16])
def test_what_is_lost_is_the_difference_from_the_exact_sum(
    tiny_model_dir: Folder, options: dict[str, Any], dtype: DType
) -> None:
    loaded, adapter = loaded_and_adapted(tiny_model_dir(), 0.1, **options)
    merged = quietly(loaded, adapter, dtype)
    places = {place.path: place for place in loaded.model.projections()}
    assert [module.path for module in merged.modules] == list(places)
    for module in merged.modules:
        weight, layer = merged.weights[f"{module.path}.weight"], adapter.layer_at(module.path)
        assert isinstance(weight, QuantizedWeight) == bool(options)
        assert layer is not None
        delta = layer.delta_weight().numpy().astype(np.float64)
        exact = numpy(places[module.path].dense_weight()) + delta
        # F32 sums and norms against double precision
        assert math.isclose(module.delta, np.linalg.norm(delta), rel_tol=1e-5)
        assert math.isclose(module.lost, np.linalg.norm(numpy(weight) - exact), rel_tol=1e-3, abs_tol=1e-6)
        if isinstance(weight, QuantizedWeight):
            before = loaded.model.quantized_weights()[f"{module.path}.weight"]
            assert weight.packing() == before.packing()
            assert weight.scales.dtype is dtype
        else:
            assert weight.dtype is dtype
            assert dtype is not DType.F32 or module.share < 1e-6  # F32 rounds the sum


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("size", [1e-4, 0.1])
def test_quantising_again_never_loses_more_than_the_adapter_adds(
    tiny_model_dir: Folder, bits: int, size: float
) -> None:
    """A small delta leaves each number where it was; MLX's new scales alone would move all of them."""
    loaded, adapter = loaded_and_adapted(tiny_model_dir(), size, quantize=bits, group_size=32)
    merged = quietly(loaded, adapter)
    places = {place.path: place for place in loaded.model.projections()}
    for module in merged.modules:
        layer = adapter.layer_at(module.path)
        assert layer is not None
        assert module.share <= 1 + 1e-5  # the base's grid in F32
        exact = places[module.path].dense_weight() + layer.delta_weight()
        fresh = loaded.model.quantized_weights()[f"{module.path}.weight"].requantize(exact)
        assert module.lost <= np.linalg.norm(numpy(fresh) - numpy(exact)) * (1 + 1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_weight_on_its_own_grid_keeps_every_code(bits: int) -> None:
    dense = Tensor.from_mlx(mx.random.normal((6, 128), key=mx.random.key(0)))
    base = QuantizedWeight.quantize(dense, bits, 64)
    again = requantized(base, base.dequantize(), DType.F32)
    for before, after in zip(base.parts(), again.parts()):
        np.testing.assert_array_equal(after.numpy(), before.numpy())


def test_more_bits_lose_less(tiny_model_dir: Folder) -> None:
    folder = tiny_model_dir()
    shares = []
    for options, dtype in (
        ({}, DType.F32),
        ({}, DType.F16),
        ({}, DType.BF16),
        ({"quantize": 8, "group_size": 32}, DType.F32),
        ({"quantize": 4, "group_size": 32}, DType.F32),
    ):
        shares.append(quietly(*loaded_and_adapted(folder, 0.1, **options), dtype).share)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 1e-6
    assert shares[1] > 1e-6


def test_a_delta_below_the_grid_vanishes_and_is_warned_about(tmp_path: Path, tiny_model_dir: Folder) -> None:
    """Weights that BF16 holds exactly, and a change of less than half its step: nothing arrives."""
    loaded = load_model(tiny_model_dir())
    save_model(tmp_path / "halves", loaded.model, loaded.tokenizer, DType.BF16)
    loaded, adapter = loaded_and_adapted(tmp_path / "halves", 1e-6)
    with pytest.warns(MergeWarning) as raised:
        merged = merge_adapter(loaded.model, adapter, DType.BF16)
    assert all(0.5 < module.share <= 1.001 for module in merged.modules)
    assert raised[0].filename == __file__
    text = str(raised[0].message)
    assert text == merged.warning()
    assert "merging into bf16 loses " in text
    assert "14 of 14 modules lose 25 % or more, the worst: " in text
    worst = merged.worst()
    assert len(worst) == 3
    assert all(f"{module.path} " in text for module in worst)
    assert worst[0].share == max(module.share for module in merged.modules)
    assert raised[0].filename == __file__


def test_a_merge_that_loses_little_does_not_warn(tiny_model_dir: Folder) -> None:
    loaded, adapter = loaded_and_adapted(tiny_model_dir(), 0.1)
    merged = merge_adapter(loaded.model, adapter, DType.BF16)  # a warning would be an error here
    assert 0 < merged.share < 0.05
    assert merged.warning() is None
    assert str(merged).startswith("14 weights merged into bf16, ")


@pytest.mark.parametrize("options", [{}, {"quantize": 8, "group_size": 32}])
def test_a_merged_model_computes_what_the_adapted_one_does(
    tmp_path: Path, tiny_model_dir: Folder, options: dict[str, Any]
) -> None:
    loaded, adapter = loaded_and_adapted(tiny_model_dir(), 0.1, **options)
    plain = logits(loaded.model)
    merged = quietly(loaded, adapter)
    save_model(tmp_path / "merged", loaded.model, loaded.tokenizer, DType.F32, overrides=merged.weights)
    np.testing.assert_array_equal(logits(loaded.model), plain)  # the base stays as it is
    loaded.model.apply_adapter(adapter)
    expected = logits(loaded.model)
    again = load_model(tmp_path / "merged").model
    assert len(again.quantized_weights()) == (14 if options else 0)
    # float32's sums in another order; 8 bits move each weight by up to half a step
    atol = 0.05 * np.abs(expected - plain).max() if options else 1e-4
    np.testing.assert_allclose(logits(again), expected, atol=atol)


def test_modules_that_change_nothing_are_left_alone(tiny_model_dir: Folder) -> None:
    loaded = load_model(tiny_model_dir(), quantize=4, group_size=32)
    merged = merge_adapter(loaded.model, LoRAAdapter.for_model(loaded.model, LoRAAdapterConfig(2)), DType.BF16)
    assert (merged.weights, merged.modules, merged.share) == ({}, (), 0.0)
    assert str(merged) == "nothing to merge: B is zero everywhere"


def test_dtypes_that_are_refused(tiny_model_dir: Folder) -> None:
    loaded, adapter = loaded_and_adapted(tiny_model_dir(), 0.1)
    with pytest.raises(UnsupportedDTypeForOpError, match="merge_adapter: got dtype i32; takes f32, bf16 or f16"):
        merge_adapter(loaded.model, adapter, "i32")


def test_shares_above_one_are_said_as_they_are() -> None:
    merged = Merged({}, (MergedModule("a", 1.0, 6.0, "4 bits (groups of 64)"), MergedModule("b", 1.0, 0.1, "bf16")))
    assert merged.warning() == (
        "merging into 4 bits (groups of 64) loses 424 % of what the adapter adds; 1 of 2 modules lose 25 % or more, "
        "the worst: a 600 %, b 10 %"
    )
