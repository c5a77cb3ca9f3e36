"""Conversions that are left out, against the chain as it was recorded: every pair and every kind of value."""

from __future__ import annotations

import itertools

from metal_candle import Device, DType, LazyTensor, Var, features
from metal_candle.graph.rewrites.cast import holds

import mlx.core as mx
import numpy as np
import pytest
from rewriting import lowered

EDGES = [
    float("nan"),
    float("inf"),
    float("-inf"),
    0.0,
    -0.0,
    0.5,
    -1.5,
    3e38,
    -3e38,
    65504.0,
    65520.0,
    1e-7,
    1e-40,
    1e-45,
]


def values_of(dtype: DType) -> LazyTensor:
    """Both ends, what is next to powers of two, what a narrower dtype would not hold, and what is no number."""
    rng = np.random.default_rng(0)
    if dtype.is_float():
        values = np.array([*EDGES, *rng.normal(size=50), *(rng.normal(size=200) * 10.0 ** rng.integers(-44, 39, 200))])
        with mx.stream(mx.cpu), np.errstate(over="ignore"):
            array = mx.array(values, mx.float64).astype(mx.float32 if dtype is not DType.F64 else mx.float64)
            return LazyTensor.new(array.astype(dtype.mlx_), Device.Cpu)
    info = np.iinfo(str(dtype.mlx_).rpartition(".")[2])
    powers = [sign * 2**i + near for i in range(64) for sign in (1, -1) for near in (-1, 0, 1)]
    drawn = [*powers, *rng.integers(info.min, info.max, 300, dtype=info.dtype).tolist(), info.min, info.max]
    return LazyTensor.new(np.array([v for v in drawn if info.min <= v <= info.max], info.dtype), Device.Cpu, dtype)


def bits(tensor: LazyTensor) -> np.ndarray:
    array = tensor.eval().mlx()
    with mx.stream(mx.cpu):
        return np.array(array.astype(mx.float64) if array.dtype == mx.bfloat16 else array)


@pytest.mark.parametrize("start", list(DType), ids=str)
def test_every_chain_gives_the_same_bits(start: DType) -> None:
    x = values_of(start)
    for middle, end in itertools.product(DType, DType):
        if start is middle or middle is end:
            continue
        chain = x.to_dtype(middle).to_dtype(end)
        casts = len(lowered(chain))
        assert casts == 2 or holds(middle, start), (start, middle, end)
        found = bits(chain)
        with features.disabled("rewrite"):
            expected = bits(x.to_dtype(middle).to_dtype(end))
        np.testing.assert_array_equal(found, expected, err_msg=f"{start} {middle} {end}")
        if start.is_float() and end.is_float():
            np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("inner", list(DType), ids=str)
def test_the_table_of_exact_pairs_is_complete(inner: DType) -> None:
    x = values_of(inner)
    for outer in DType:
        with features.disabled("rewrite"):
            back = bits(x.to_dtype(outer).to_dtype(inner))
            middle = bits(x.to_dtype(outer))
        # An integer that wraps or saturates comes back too: compare in between as well.
        kept = np.array_equal(back, bits(x), equal_nan=inner.is_float())
        same = all(m == v or (m != m and v != v) for m, v in zip(middle.tolist(), bits(x).tolist()))
        assert holds(outer, inner) == (kept and same), (inner, outer)


def test_what_rounds_stays() -> None:
    x = LazyTensor.new(np.array([1.0, 1e-3], np.float32))
    assert lowered(x.to_dtype("f16").to_dtype("f32")) == ["to_dtype", "to_dtype"]
    assert lowered(x.to_dtype("i32").to_dtype("f32")) == ["to_dtype", "to_dtype"]


def test_a_held_value_between_keeps_its_own_conversion() -> None:
    x = LazyTensor.new(np.array([1.0, 2.5], np.float32)).to_dtype("f16").exp()
    wide = x.to_dtype("f32")
    narrow = wide.to_dtype("f16") * wide.to_dtype("bf16").to_dtype("f16")
    assert sorted(lowered(narrow)) == sorted(["to_dtype", "exp", "to_dtype", "to_dtype", "to_dtype", "mul"])
    narrow.eval()
    np.testing.assert_array_equal(wide.eval().numpy(), x.eval().numpy().astype(np.float32))


def test_the_gradient_passes_floats_and_ends_at_integers() -> None:
    v = Var.from_tensor(LazyTensor.new(np.array([1.0, -2.5], np.float32)).to_dtype("f16").eval())
    x = LazyTensor.from_tensor(v)
    loss = (x.to_dtype("f32").to_dtype("f16") * x).sum_all()
    assert lowered(loss) == ["mul", "sum"]
    np.testing.assert_array_equal(loss.backward()[v].numpy(), [2.0, -5.0])
    cut = (x.to_dtype("i32").to_dtype("f64").to_dtype("f16") * x).sum_all()
    np.testing.assert_array_equal(cut.backward()[v].numpy(), [1.0, -2.0])
