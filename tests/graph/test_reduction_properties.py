"""Reductions against NumPy, for every dtype, shape and odd value: dims, dtypes, wrapping, NaN, empty dims, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import D, Device, DType, LazyTensor, Tensor, error

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odd import FLOATS, INTS, LIMITS, Array, arrays, assert_float, rounded, tensor

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
EXAMPLES = settings(max_examples=40, deadline=None)
any_shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ranked = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
filled = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


@st.composite
def dims_of(draw: Any, rank: int) -> tuple[int, ...]:
    """Some dims, in any order, some counted from the end."""
    chosen = draw(st.lists(st.integers(0, rank - 1), unique=True, max_size=rank)) if rank else []
    return tuple(dim - rank if draw(st.booleans()) else dim for dim in chosen)


def near(result: Any, want: Array, dtype: DType, scale: float, ulps: float = 4) -> None:
    """Within roundings of the largest term, since a sum's error goes with its terms."""
    epsilon = LIMITS[dtype][2]
    assert result.dtype is dtype
    assert_float(result.numpy(), rounded(np.asarray(want, np.float64), dtype), dtype, ulps, 8 * epsilon * scale)


def largest(values: Array) -> float:
    sizes = np.abs(values.astype(np.float64))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0)) * max(values.size, 1)


@KINDS
@EXAMPLES
@given(st.data())
def test_sums_and_means_of_floats(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, any_shape, -100.0, 100.0))
    dims = data.draw(dims_of(values.ndim))
    x, wide, scale = tensor(kind, values, dtype), values.astype(np.float64), largest(values)
    with np.errstate(all="ignore"):
        sums, kept, total = wide.sum(dims), wide.sum(dims, keepdims=True), wide.sum()
        means = sums / np.prod([values.shape[dim] for dim in dims])
        mean = total / np.float64(values.size)
    near(x.sum(dims), sums, dtype, scale)
    near(x.sum_keepdim(dims), kept, dtype, scale)
    near(x.sum_all(), total, dtype, scale)
    near(x.mean(dims), means, dtype, scale)
    near(x.mean_keepdim(dims), means.reshape(kept.shape), dtype, scale)
    near(x.mean_all(), mean, dtype, scale)
    if len(dims) == 1:
        near(x.sum(dims[0]), sums, dtype, scale)


@KINDS
@EXAMPLES
@given(st.data())
def test_sums_of_integers_wrap_in_their_own_dtype(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(INTS))
    values = data.draw(arrays(dtype, any_shape))
    dims = data.draw(dims_of(values.ndim))
    x = tensor(kind, values, dtype)
    with np.errstate(all="ignore"):
        for result, want in [
            (x.sum(dims), values.sum(dims, dtype=values.dtype)),
            (x.sum_keepdim(dims), values.sum(dims, keepdims=True, dtype=values.dtype)),
            (x.sum_all(), values.sum(dtype=values.dtype)),
        ]:
            assert result.dtype is dtype
            np.testing.assert_array_equal(result.numpy(), want)


@KINDS
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_halves_are_added_up_in_float32(kind: Any, dtype: DType) -> None:
    ones = kind.ones((4096, 3), dtype, Device.Cpu)
    for result in (ones.sum(0), ones.cumsum(0)[-1], ones.t().contiguous().sum(1), ones.sum_all()):
        assert set(np.ravel(result.numpy())) <= {4096.0, 12288.0}
    # The sum, 409600, is beyond float16.
    assert (ones * 100.0).mean_all().to_scalar() == 100.0
    assert (ones * 100.0).var(0).tolist() == [0.0] * 3


@KINDS
@EXAMPLES
@given(st.data())
def test_extremes_and_their_places(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([*FLOATS, *INTS]))
    values = data.draw(arrays(dtype, filled))
    dim = data.draw(st.integers(-values.ndim, values.ndim - 1))
    x = tensor(kind, values, dtype)
    with np.errstate(invalid="ignore"):
        for name, numpy, place in (("max", np.max, np.argmax), ("min", np.min, np.argmin)):
            for result, want in [
                (getattr(x, name)(dim), numpy(values, dim)),
                (getattr(x, f"{name}_keepdim")(dim), numpy(values, dim, keepdims=True)),
                (getattr(x, f"{name}_all")(), numpy(values)),
            ]:
                assert result.dtype is dtype
                np.testing.assert_array_equal(result.numpy(), want)
            for found, where in [
                (getattr(x, f"arg{name}")(dim), place(values, dim)),
                (getattr(x, f"arg{name}_keepdim")(dim), place(values, dim, keepdims=True)),
            ]:
                assert found.dtype is DType.U32
                np.testing.assert_array_equal(found.numpy(), where)


@KINDS
@EXAMPLES
@given(st.data())
def test_variance(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, filled, -100.0, 100.0))
    dim = data.draw(st.integers(-values.ndim, values.ndim - 1))
    x, wide = tensor(kind, values, dtype), values.astype(np.float64)
    with np.errstate(all="ignore"):
        centred = wide - wide.mean(dim, keepdims=True)
        want = np.square(centred).sum(dim, keepdims=True) / np.float64(values.shape[dim] - 1)
    near(x.var_keepdim(dim), want, dtype, 1e3 + largest(values))
    near(x.var(dim), want.squeeze(dim), dtype, 1e3 + largest(values))


@KINDS
@EXAMPLES
@given(st.data())
def test_log_sum_exp(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, filled))
    dims = data.draw(dims_of(values.ndim))
    x, wide = tensor(kind, values, dtype), values.astype(np.float64)
    with np.errstate(all="ignore"):
        top = wide.max(axis=dims, keepdims=True)
        shift = np.where(np.isinf(top), 0.0, top)
        want = np.log(np.exp(wide - shift).sum(dims)) + shift.reshape(np.sum(shift, axis=dims).shape) if dims else wide
    near(x.log_sum_exp(dims), want, dtype, 1.0, 8)


@KINDS
@EXAMPLES
@given(st.data())
def test_norm(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, any_shape, -100.0, 100.0))
    result = tensor(kind, values, dtype).norm()
    assert result.rank == 0
    with np.errstate(all="ignore"):
        # Squares of numbers below 1.1e-19 are not normal in float32.
        small = 0.0 if dtype is DType.F64 else 2e-19 / (8 * LIMITS[dtype][2])
        near(result, np.sqrt(np.square(values.astype(np.float64)).sum()), dtype, small, 8)


@KINDS
@EXAMPLES
@given(st.data())
def test_cumsum(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, ranked, -100.0, 100.0))
    dim = data.draw(st.integers(-values.ndim, values.ndim - 1))
    result = tensor(kind, values, dtype).cumsum(dim)
    with np.errstate(all="ignore"):
        near(result, values.astype(np.float64).cumsum(dim), dtype, largest(values))


@settings(max_examples=30, deadline=None)
@given(arrays(DType.F32, filled, -50.0, 50.0, finite=True), st.data())
def test_mlx_agrees(values: Array, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, values.ndim - 1))
    x = tensor(Tensor, values, DType.F32)
    with mx.stream(mx.cpu):
        array = mx.array(values)
        for got, want in [
            (x.sum(dim), mx.sum(array, axis=dim)),
            (x.mean(dim), mx.mean(array, axis=dim)),
            (x.max(dim), mx.max(array, axis=dim)),
            (x.argmin(dim), mx.argmin(array, axis=dim)),
            (x.var(dim), mx.var(array, axis=dim, ddof=1)),
            (x.log_sum_exp(dim), mx.logsumexp(array, axis=dim)),
            (x.norm(), mx.linalg.norm(array)),
            (x.cumsum(dim), mx.cumsum(array, axis=dim)),
        ]:
            np.testing.assert_allclose(got.numpy(), np.array(want), rtol=1e-5, atol=1e-4)


# --- matrix and vector products ---------------------------------------------------------------


def test_a_product_over_nothing_is_zeros() -> None:
    got = Tensor.zeros((2, 0)).matmul(Tensor.zeros((0, 3)))
    assert got.tolist() == [[0.0] * 3] * 2


@KINDS
def test_matmul_compares_the_number_of_matrices(kind: Any) -> None:
    left = np.arange(72, dtype=np.float32).reshape(2, 3, 4, 3)
    right = np.arange(36, dtype=np.float32).reshape(3, 2, 3, 2)
    got = kind.new(left, Device.Cpu).matmul(kind.new(right, Device.Cpu))
    np.testing.assert_array_equal(got.numpy(), left @ right.reshape(2, 3, 3, 2))


@KINDS
def test_dot_and_mv(kind: Any) -> None:
    a, b = kind.new([1.0, 2.0, 3.0]), kind.new([4.0, 5.0, 6.0])
    assert (a.dot(b).to_scalar(), a.dot(b).rank) == (32.0, 0)
    assert kind.new([1, 2, 3]).dot(kind.new([4, 5, 6])).to_scalar() == 32
    assert kind.new([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]).mv(b).tolist() == [32.0, 5.0]


Call = Callable[[Any], Any]
ERRORS: list[tuple[type[Exception], str, str, Call]] = [
    (error.DimOutOfRangeError, "sum", "dim 3", lambda x: x.sum(3)),
    (error.DimOutOfRangeError, "sum", "dim -4", lambda x: x.sum_keepdim((0, -4))),
    (error.DuplicateDimIndexError, "sum", "twice", lambda x: x.sum((0, -3))),
    (error.DimOutOfRangeError, "mean", "dim 3", lambda x: x.mean(3)),
    (error.DimOutOfRangeError, "mean-keepdim", "dim 3", lambda x: x.mean_keepdim(3)),
    (error.DuplicateDimIndexError, "mean", "twice", lambda x: x.mean((1, 1))),
    (error.DimOutOfRangeError, "var", "dim 3", lambda x: x.var(3)),
    (error.DimOutOfRangeError, "max", "dim 3", lambda x: x.max(3)),
    (error.OnlySingleDimensionError, "min", "takes one dim", lambda x: x.min((0, 1))),
    (error.OnlySingleDimensionError, "var", "takes one dim", lambda x: x.var((0, 1))),
    (error.EmptyTensorError, "max", "dim 1 is empty", lambda x: x.max(1)),
    (error.EmptyTensorError, "min", "dim 1 is empty", lambda x: x.min_all()),
    (error.EmptyTensorError, "argmax", "dim 1 is empty", lambda x: x.argmax(1)),
    (error.EmptyTensorError, "argmin", "dim 1 is empty", lambda x: x.argmin_keepdim(-2)),
    (error.DimOutOfRangeError, "argmax", "dim 5", lambda x: x.argmax(5)),
    (error.DimOutOfRangeError, "log-sum-exp", "dim 3", lambda x: x.log_sum_exp(3)),
    (error.EmptyTensorError, "log-sum-exp", "dim 1 is empty", lambda x: x.log_sum_exp((0, 1))),
    (error.DimOutOfRangeError, "cumsum", "dim 3", lambda x: x.cumsum(3)),
    (error.UnsupportedDTypeForOpError, "mean", "i64", lambda x: x.to_dtype("i64").mean_all()),
    (error.UnsupportedDTypeForOpError, "var", "i64", lambda x: x.to_dtype("i64").var(0)),
    (error.UnsupportedDTypeForOpError, "cumsum", "u8", lambda x: x.to_dtype("u8").cumsum(0)),
    (error.UnsupportedDTypeForOpError, "log-sum-exp", "u8", lambda x: x.to_dtype("u8").log_sum_exp(0)),
    (error.UnsupportedDTypeForOpError, "matmul", "i64", lambda x: x.to_dtype("i64").matmul(x.to_dtype("i64").t())),
    (error.DTypeMismatchError, "matmul", "f16", lambda x: x.matmul(x.to_dtype("f16"))),
    (error.ShapeMismatchBinaryOpError, "matmul", "(…, m, k)", lambda x: x.matmul(x)),
    (error.ShapeMismatchBinaryOpError, "matmul", "equal leading dims", lambda x: x.matmul(x.sum(0))),
    (error.ShapeMismatchBinaryOpError, "broadcast_matmul", "(…, m, k)", lambda x: x.broadcast_matmul(x)),
    (
        error.ShapeMismatchBinaryOpError,
        "broadcast_matmul",
        "leading dims that broadcast",
        lambda x: x.broadcast_matmul(type(x).zeros((3, 4, 5))),
    ),
    (error.ShapeMismatchBinaryOpError, "dot", "1-D tensors", lambda x: x.dot(x)),
    (error.ShapeMismatchBinaryOpError, "mv", "(m, n)", lambda x: x.sum(0).mv(type(x).zeros(3))),
    (mc.Error, "", "mv: got list", lambda x: x.mv([1.0])),
    (mc.Error, "", "dot: got float", lambda x: x.dot(1.0)),
]


@KINDS
@pytest.mark.parametrize(("expected", "op", "text", "call"), ERRORS)
def test_errors_are_raised_when_recorded(
    kind: Any, expected: type[Exception], op: str, text: str, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(expected) as caught:
        call(kind.zeros((2, 0, 4)))
    assert text in str(caught.value)
    assert not op or caught.value.op == op  # type: ignore[attr-defined]


@KINDS
def test_no_dims_give_the_tensor_and_a_scalar_has_none(kind: Any) -> None:
    x = kind.new([[1.0, 2.0], [3.0, 4.0]])
    for result in (x.sum(()), x.sum_keepdim(()), x.mean(()), x.log_sum_exp(())):
        np.testing.assert_array_equal(result.numpy(), x.numpy())
    scalar = kind.new(5.0)
    for result in (scalar.sum_all(), scalar.mean_all(), scalar.max_all(), scalar.min_all(), scalar.norm()):
        assert (result.to_scalar(), result.rank) == (5.0, 0)


@KINDS
def test_other_dims_may_be_empty(kind: Any) -> None:
    x = kind.zeros((0, 3))
    for result in (x.sum(1), x.mean(1), x.max(1), x.argmax(1), x.log_sum_exp(1), x.var(1)):
        assert tuple(result.shape) == (0,)
        assert result.numpy().shape == (0,)
    assert x.sum(0).tolist() == [0.0] * 3
    assert np.isnan(x.mean(0).numpy()).all()
    assert np.isnan(x.mean_all().to_scalar())
    assert kind.new([[1.0, 2.0]]).sum(D.Minus1).tolist() == [3.0]


@KINDS
def test_one_element_has_no_variance(kind: Any) -> None:
    assert np.isnan(kind.new([[1.0], [2.0]]).var(1).numpy()).all()
