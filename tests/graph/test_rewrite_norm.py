"""Norms in real code: what is held or used elsewhere stays, layers spelled as candle and Hugging Face do, extremes."""

from __future__ import annotations

import math
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, features

import numpy as np
import pytest
from rewriting import lowered


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def lazy(*shape: int, seed: int = 0, dtype: str = "f32") -> LazyTensor:
    return LazyTensor.from_tensor(Tensor(normal(*shape, seed=seed)).to_dtype(dtype))


def llama(x: LazyTensor, weight: LazyTensor, eps: float) -> LazyTensor:
    """Hugging Face's LlamaRMSNorm."""
    dtype = x.dtype
    wide = x.to_dtype(DType.F32)
    variance = wide.powf(2.0).mean_keepdim(-1)
    return weight * (wide * (variance + eps).powf(-0.5)).to_dtype(dtype)


def gemma(x: LazyTensor, weight: LazyTensor, eps: float) -> LazyTensor:
    """candle's gemma::RmsNorm."""
    dtype, size = x.dtype, x.dim(-1)
    wide = x.to_dtype(DType.F32)
    square = wide.sqr().sum_keepdim(-1) / size
    return wide.broadcast_div((square + eps).sqrt()).to_dtype(dtype).broadcast_mul(weight + 1.0)


def bert(x: LazyTensor, weight: LazyTensor, bias: LazyTensor, eps: float) -> LazyTensor:
    """candle_nn::LayerNorm::forward."""
    dtype, size = x.dtype, x.dim(-1)
    wide = x.to_dtype(DType.F32)
    centred = wide.broadcast_sub(wide.sum_keepdim(-1) / size)
    square = centred.sqr().sum_keepdim(-1) / size
    normed = centred.broadcast_div((square + eps).sqrt()).to_dtype(dtype)
    return normed.broadcast_mul(weight).broadcast_add(bias)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(("layer", "names"), [(llama, []), (gemma, ["affine"])], ids=["llama", "gemma"])
def test_rms_norms_of_models(layer: Any, names: list[str], dtype: str) -> None:
    assert lowered(layer(lazy(2, 3, 64, dtype=dtype), lazy(64, seed=1, dtype=dtype), 1e-6)) == [
        *names,
        "weighted_rms_norm",
    ]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_candles_layer_norm(dtype: str) -> None:
    x, weight, bias = lazy(2, 3, 64, dtype=dtype), lazy(64, seed=1, dtype=dtype), lazy(64, seed=2, dtype=dtype)
    assert lowered(bert(x, weight, bias, 1e-5)) == ["layer_norm"]


def test_two_norms_of_one_input_in_a_half() -> None:
    # The cast to float32 has two readers that are not fused with each other.
    x, one, other = lazy(3, 64, dtype="bf16"), lazy(64, seed=1, dtype="bf16"), lazy(64, seed=2, dtype="bf16")
    a, b = llama(x, one, 1e-6), gemma(x, other, 1e-5)
    assert lowered(a, b).count("weighted_rms_norm") == 2
    assert not {"to_dtype", "sum", "mean"} & set(lowered(a, b))


def test_a_value_that_is_held_is_not_computed_twice() -> None:
    x = lazy(5, 13)
    root = (x.sqr().mean_keepdim(1) + 1e-5).sqrt()
    y = x / root
    assert "rms_norm" not in lowered(y)
    del root
    assert lowered(y) == ["rms_norm"]
    centred = x - x.mean_keepdim(1)
    y = centred / (centred.sqr().mean_keepdim(1) + 1e-5).sqrt()
    # The centred rows are somebody's; their norm is one operation nevertheless.
    assert lowered(y) == ["mean", "sub", "rms_norm"]
    del centred
    assert lowered(y) == ["layer_norm"]


def test_a_norm_that_is_held_keeps_its_weight_apart() -> None:
    normed = lazy(5, 13).rms_norm(1e-5)
    y = normed * lazy(13, seed=1)
    assert lowered(y) == ["rms_norm", "mul"]
    del normed
    assert lowered(y) == ["weighted_rms_norm"]


def test_detached_statistics_stay() -> None:
    x = LazyTensor.from_tensor(Var(normal(5, 13)))
    y = x / (x.detach().sqr().mean_keepdim(1) + 1e-5).sqrt()
    assert "rms_norm" not in lowered(y)


def test_a_weight_in_float32_beside_a_half_stays_exact() -> None:
    x, weight = lazy(5, 64, dtype="bf16"), lazy(64, seed=1)
    y = (x.to_dtype(DType.F32).rms_norm(1e-5) * weight).to_dtype(DType.BF16)
    assert lowered(y) == ["to_dtype", "weighted_rms_norm", "to_dtype"]


@pytest.mark.parametrize("n", [1, 2])
def test_short_rows(n: int) -> None:
    x = lazy(3, n)
    y = x / (x.sqr().mean_keepdim(1) + 1e-5).sqrt()
    assert lowered(y) == ["rms_norm"]
    with features.disabled("rewrite"):
        plain = (x / (x.sqr().mean_keepdim(1) + 1e-5).sqrt()).numpy()
    np.testing.assert_allclose(y.numpy(), plain, rtol=1e-6)


def test_rows_without_elements_are_left_alone() -> None:
    x = LazyTensor.new(np.zeros((3, 0), np.float32))
    y = x / (x.sqr().mean_keepdim(1) + 1e-5).sqrt()
    assert "rms_norm" not in lowered(y)
    assert y.numpy().shape == (3, 0)


ROWS = {
    "zeros": [0.0, 0.0, 0.0, 0.0],
    "infinite": [math.inf, 1.0, -2.0, 3.0],
    "nan": [math.nan, 1.0, -2.0, 3.0],
    "huge": [1e30, 1.0, -2.0, 3.0],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_extremes_stay_what_they_were(row: str, eps: float) -> None:
    x = LazyTensor.new(np.array([ROWS[row]], np.float32))

    def rms() -> LazyTensor:
        return x / (x.sqr().mean_keepdim(1) + eps).sqrt()

    def layer() -> LazyTensor:
        centred = x - x.mean_keepdim(1)
        return centred / (centred.sqr().mean_keepdim(1) + eps).sqrt()

    for spelled in (rms, layer):
        y = spelled()
        assert len(lowered(y)) == 1
        with features.disabled("rewrite"):
            plain = spelled().numpy()
        np.testing.assert_allclose(y.numpy(), plain, rtol=1e-6)


def test_a_float16_row_whose_squares_leave_the_range_keeps_its_values() -> None:
    x = LazyTensor.from_tensor(Tensor(np.array([[300.0, -600.0, 900.0, 0.0]], np.float32)).to_dtype("f16"))
    want = np.array([[300.0, -600.0, 900.0, 0.0]]) / math.sqrt((300**2 + 600**2 + 900**2) / 4)
    np.testing.assert_allclose((x / (x.sqr().mean_keepdim(1) + 1e-5).sqrt()).numpy(), want, rtol=1e-3)
    with features.disabled("rewrite"):
        assert not (x / (x.sqr().mean_keepdim(1) + 1e-5).sqrt()).numpy().any()


def test_gradients_of_a_layer_in_halves() -> None:
    start = [normal(3, 64), normal(64, seed=1), normal(64, seed=2)]
    found = []
    for dtype, off in (("bf16", False), ("f64", True)):
        variables = [Var.from_tensor(Tensor(array).to_dtype("bf16").to_dtype(dtype)) for array in start]
        lazies = [LazyTensor.from_tensor(variable) for variable in variables]
        if off:
            with features.disabled("rewrite"):
                grads = bert_in(lazies, DType.F64).sqr().sum_all().backward()
        else:
            grads = bert_in(lazies, DType.F32).sqr().sum_all().backward()
        found.append([grads[variable].to_dtype("f64").numpy() for variable in variables])
    for got, want in zip(*found):
        # bfloat16 rounds by 2^-9, the cotangent and each factor once.
        np.testing.assert_allclose(got, want, rtol=0, atol=0.02 * np.abs(want).max() + 0.02)


def bert_in(tensors: list[LazyTensor], wide: DType) -> LazyTensor:
    x, weight, bias = tensors
    inner = x.to_dtype(wide)
    centred = inner - inner.mean_keepdim(-1)
    normed = centred / (centred.sqr().mean_keepdim(-1) + 1e-5).sqrt()
    return normed.to_dtype(x.dtype) * weight + bias
