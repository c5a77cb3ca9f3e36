"""Layer normalisation: both variants against the definition in float64, gradients, and which is chosen."""

from __future__ import annotations

from typing import Any

from metal_candle import DType
from metal_candle.kernels import layer_norm as module
from metal_candle.kernels.kernel import on_cpu
from metal_candle.kernels.layer_norm import layer_norm

import mlx.core as mx
import numpy as np
import pytest
from tolerance import VALUE, Tolerance, assert_near

EPS = 1e-5
SHAPES = [(5, 123), (2, 3, 64), (70, 300), (7,), (3, 1), (40, 30, 33)]


def operands(shape: tuple[int, ...], given: str, dtype: mx.Dtype) -> list[mx.array | None]:
    x = mx.random.normal(shape, key=mx.random.key(0)) * 2 + 1
    rest = [mx.random.normal(shape[-1:], key=mx.random.key(i)) for i in (1, 2)]
    made = [x, rest[0] if "weight" in given else None, rest[1] if "bias" in given else None]
    return [None if array is None else array.astype(dtype) for array in made]


def in_float64(arrays: list[mx.array | None], cotangent: mx.array) -> tuple[Any, list[Any]]:
    """The definition's value and its gradients by MLX."""
    with mx.stream(mx.cpu):
        which = [i for i, array in enumerate(arrays) if array is not None]

        def function(*values: mx.array) -> mx.array:
            full: list[mx.array | None] = [None] * 3
            for i, value in zip(which, values):
                full[i] = value
            return layer_norm.reference(*full, EPS)

        wide = [arrays[i].astype(mx.float64) for i in which]
        values, gradients = mx.vjp(function, wide, [cotangent.astype(mx.float64)])
        return np.array(values[0]), [np.array(gradient) for gradient in gradients]


def near_its_largest(got: mx.array, want: Any, tolerance: Tolerance) -> None:
    """A sum's rounding error goes with its terms, not with what is left of them."""
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    assert_near(np.array(got.astype(mx.float32)) / scale, want / scale, tolerance)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize("given", ["", "weight", "bias", "weight and bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["chosen", "sums by product", "blocks of rows"])
def test_value_and_gradients(name: str, shape: tuple[int, ...], given: str, dtype: DType) -> None:
    arrays = operands(shape, given, dtype.mlx())
    half = dtype is not DType.F32
    variants: dict[str, Any] = {
        "chosen": layer_norm,
        "sums by product": module._HALF if half else module._CPU,
        "blocks of rows": module._BLOCKS_HALF if half else module._BLOCKS,
    }
    variant = variants[name]
    cotangent = mx.random.normal(shape, key=mx.random.key(3)).astype(dtype.mlx())
    want, gradients = in_float64(arrays, cotangent)
    outputs = variant.forward(*arrays, EPS)
    assert outputs[0].dtype == dtype.mlx()
    near_its_largest(outputs[0], want, VALUE[dtype])
    needs = tuple(array is not None for array in arrays)
    # With what forward saved, and with the result alone.
    for saved in (outputs, outputs[:1]):
        got = variant.vjp(cotangent, tuple(arrays), saved, needs, EPS)
        assert [gradient is not None for gradient in got] == list(needs)
        for gradient, expected in zip([gradient for gradient in got if gradient is not None], gradients):
            assert gradient.dtype == dtype.mlx()
            if shape[-1] > 1:
                near_its_largest(gradient, expected, VALUE[dtype])
    for wanted in range(3):
        if needs[wanted]:
            only = tuple(i == wanted for i in range(3))
            got = variant.vjp(cotangent, tuple(arrays), outputs, only, EPS)
            assert [gradient is not None for gradient in got] == list(only)


def test_blocks_are_as_one() -> None:
    x, weight, bias = operands((700, 900), "weight and bias", mx.float32)
    assert x is not None
    assert x.size >= module.LARGE
    cotangent = mx.random.normal(x.shape, key=mx.random.key(3))
    found = []
    for variant in (module._BLOCKS, module._CPU):
        outputs = variant.forward(x, weight, bias, EPS)
        found.append([outputs[0], *variant.vjp(cotangent, (x, weight, bias), outputs, (True,) * 3, EPS)])
    for got, want in zip(*found):
        near_its_largest(got, np.array(want, np.float64), VALUE[DType.F32])


def test_float64_stays_float64() -> None:
    with mx.stream(mx.cpu):
        x = np.random.default_rng(0).standard_normal((5, 123))
        got = layer_norm(mx.array(x, mx.float64), None, None, EPS)
        want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS)
        assert_near(np.array(got), want, VALUE[DType.F64])


@pytest.mark.parametrize(("rows", "near"), [(4, 2e-3), (64, 5e-4)])
def test_a_large_mean_costs_few_digits(rows: int, near: float) -> None:
    x = np.random.default_rng(0).standard_normal((rows, 576)).astype(np.float32) + np.float32(1000)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + EPS)
    # 1000 is rounded by 6e-5, and its mean by a few of these; by more where MLX adds one element after the other.
    assert_near(np.array(layer_norm(mx.array(x), None, None, EPS)), want, Tolerance(0, near))


def test_mlx_differentiates_it() -> None:
    x, weight, bias = operands((70, 300), "weight and bias", mx.float32)
    function = mx.grad(lambda *a: mx.square(layer_norm(*a, EPS)).sum(), argnums=(0, 1, 2))
    plain = mx.grad(lambda *a: mx.square(layer_norm.reference(*a, EPS)).sum(), argnums=(0, 1, 2))
    for got, want in zip(function(x, weight, bias), plain(x, weight, bias)):
        near_its_largest(got, np.array(want, np.float64), VALUE[DType.F32])


@pytest.mark.skipif(not on_cpu(), reason="the CPU's choice")
@pytest.mark.parametrize(
    ("shape", "dtype", "name"),
    [
        ((1, 576), mx.float32, "mx.fast.layer_norm"),
        ((512, 576), mx.float32, "sums by product"),
        ((512, 576), mx.bfloat16, "sums by product in float32"),
        ((1024, 576), mx.float32, "sums by product, blocks of rows"),
        ((1024, 576), mx.float16, "sums by product, blocks of rows in float32"),
        ((1, 576), mx.float64, "sums by product"),
        ((0, 576), mx.float32, "reference"),
    ],
)
def test_which_variant_computes_it(shape: tuple[int, ...], dtype: mx.Dtype, name: str) -> None:
    layer_norm.choose(mx.zeros(shape, dtype), None, None, EPS)
    assert layer_norm.last is not None
    assert layer_norm.last[0] == name
