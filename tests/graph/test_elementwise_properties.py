"""Operations of one and two tensors against NumPy in float64, for every dtype, shape and odd value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, error
from metal_candle.graph.operations.comparison import CmpOp

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odd import FLOATS, INTS, LIMITS, NUMPY, Array, arrays, assert_float, rounded, tensor

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
EXAMPLES = settings(max_examples=15, deadline=None)
_erf = np.vectorize(math.erf, otypes=[np.float64])


class Unary(NamedTuple):
    """A method, its definition in float64, where it is compared, and how near in roundings and absolutely."""

    call: Callable[[Any], Any]
    numpy: Callable[[Any], Any]
    low: float | None = None
    high: float | None = None
    ulps: float = 4
    # In units of the dtype's epsilon: for what comes from a difference of near numbers.
    absolute: float = 0.0
    mlx: Callable[[Any], Any] | None = None
    finite: bool = False
    # Above it MLX's float32 is infinite already, and so may be ours.
    overflow: float = math.inf


def away(x: Any) -> Any:
    return np.copysign(np.floor(np.abs(x)) + (np.abs(x) - np.floor(np.abs(x)) >= 0.5), x)


def gelu(x: Any) -> Any:
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


UNARY = {
    "recip": Unary(lambda x: x.recip(), lambda x: 1 / x, mlx=mx.reciprocal),
    "neg": Unary(lambda x: x.neg(), np.negative, mlx=mx.negative),
    # MLX's exp of float32 reduces its argument in float32: at the ends it is off by 35 roundings, and what is made
    # of it by up to 50. Its erf of float32 is near absolutely, not relatively.
    "exp": Unary(lambda x: x.exp(), np.exp, ulps=40, overflow=88.0),
    "log": Unary(lambda x: x.log(), np.log, absolute=4, mlx=mx.log),
    # A float32 sine of a large number needs more of π than a polynomial's reduction has.
    "sin": Unary(lambda x: x.sin(), np.sin, -30, 30, absolute=4, finite=True, mlx=mx.sin),
    "cos": Unary(lambda x: x.cos(), np.cos, -30, 30, absolute=4, finite=True, mlx=mx.cos),
    "tanh": Unary(lambda x: x.tanh(), np.tanh, ulps=8, mlx=mx.tanh),
    "abs": Unary(lambda x: x.abs(), np.abs, mlx=mx.abs),
    "sqr": Unary(lambda x: x.sqr(), np.square, mlx=mx.square),
    "sqrt": Unary(lambda x: x.sqrt(), np.sqrt, mlx=mx.sqrt),
    "relu": Unary(lambda x: x.relu(), lambda x: np.maximum(x, 0), mlx=lambda x: mx.maximum(x, 0)),
    "sigmoid": Unary(lambda x: x.sigmoid(), lambda x: 1 / (1 + np.exp(-x)), ulps=60),
    # At -inf these are -inf · 0, NaN, in candle too.
    "silu": Unary(lambda x: x.silu(), lambda x: x / (1 + np.exp(-x)), -80, ulps=60, finite=True),
    "gelu": Unary(lambda x: x.gelu(), gelu, -4, 1e4, ulps=34, absolute=17, finite=True),
    "gelu_erf": Unary(
        lambda x: x.gelu_erf(), lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), -8, 1e4, absolute=16, finite=True
    ),
    "erf": Unary(lambda x: x.erf(), _erf, ulps=8, absolute=4, mlx=mx.erf),
    "elu": Unary(lambda x: x.elu(1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0))), ulps=8),
    "ceil": Unary(lambda x: x.ceil(), np.ceil, ulps=0, mlx=mx.ceil),
    "floor": Unary(lambda x: x.floor(), np.floor, ulps=0, mlx=mx.floor),
    "round": Unary(lambda x: x.round(), away, ulps=0),
    "sign": Unary(lambda x: x.sign(), lambda x: np.where(np.isnan(x), 0, np.sign(x)), ulps=0, mlx=mx.sign),
    "affine": Unary(lambda x: x.affine(2.0, -0.5), lambda x: x * 2 - 0.5, -1e4, 1e4, absolute=1),
    "powf": Unary(lambda x: x.powf(1.5), lambda x: np.power(x, 1.5), 0, ulps=8),
    "clamp": Unary(lambda x: x.clamp(-1.0, 2.5), lambda x: np.clip(x, -1.0, 2.5), ulps=0),
}


@KINDS
@pytest.mark.parametrize("name", UNARY)
@EXAMPLES
@given(st.data())
def test_floats(name: str, kind: Any, data: st.DataObject) -> None:
    case = UNARY[name]
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, low=case.low, high=case.high, finite=case.finite))
    x = tensor(kind, values, dtype)
    result = case.call(x)
    assert (tuple(result.shape), result.dtype) == (values.shape, dtype)
    with np.errstate(all="ignore"):
        want = rounded(np.asarray(case.numpy(values.astype(np.float64)), np.float64), dtype)
    # float64 has more roundings in these formulas than the narrower dtypes, whose own rounding hides them.
    ulps = case.ulps * (100 if dtype is DType.F64 and case.ulps else 1)
    epsilon = LIMITS[dtype][2] * (100 if dtype is DType.F64 else 1)
    got = result.numpy()
    if dtype is DType.F32:
        want = np.where((values > case.overflow) & np.isinf(got), np.inf, want)
    assert_float(got, want, dtype, ulps, case.absolute * epsilon)
    if case.mlx is not None and dtype is DType.F32:
        with mx.stream(mx.cpu):
            assert_float(result.numpy(), np.array(case.mlx(mx.array(values))), dtype, max(ulps, 1), 1e-6)


@KINDS
@EXAMPLES
@given(st.data())
def test_round_of_the_floats_next_to_a_half_and_of_whole_numbers(kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([DType.F16, DType.F32, DType.F64]))
    whole = data.draw(arrays(dtype, (3,), low=-3000.0, high=3000.0, finite=True))
    half = np.trunc(whole) + NUMPY[dtype](0.5)
    values = np.concatenate([np.nextafter(half, NUMPY[dtype](9e3)), half, np.nextafter(half, NUMPY[dtype](-9e3))])
    got = tensor(kind, values, dtype).round().numpy()
    np.testing.assert_array_equal(got, away(values.astype(np.float64)))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(values))


@KINDS
@pytest.mark.parametrize(
    ("decimals", "value", "want"),
    [(0, 2.5, 3.0), (0, -2.5, -3.0), (1, 0.25, 0.3), (2, -1.125, -1.13), (-1, 15.0, 20.0), (-2, 149.0, 100.0)],
)
def test_round_to(kind: Any, decimals: int, value: float, want: float) -> None:
    got = kind.new([value, float("nan"), float("inf")], mc.Device.Cpu).round_to(decimals)
    np.testing.assert_allclose(got.numpy(), np.array([want, np.nan, np.inf]), rtol=1e-6)


def test_round_to_takes_an_integer() -> None:
    for decimals in (1.5, "1", 1000):
        with pytest.raises(mc.Error, match="round_to: got decimals"):
            Tensor.new([1.0]).round_to(decimals)


INTEGERS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Array]]] = {
    "neg": (lambda x: x.neg(), np.negative),
    "sqr": (lambda x: x.sqr(), np.square),
    "abs": (lambda x: x.abs(), np.abs),
    "sign": (lambda x: x.sign(), np.sign),
    "relu": (lambda x: x.relu(), lambda x: np.maximum(x, 0)),
    "ceil": (lambda x: x.ceil(), lambda x: x),
    "floor": (lambda x: x.floor(), lambda x: x),
    "round": (lambda x: x.round(), lambda x: x),
    "affine": (lambda x: x.affine(3.9, 1.0), lambda x: x * x.dtype.type(3) + x.dtype.type(1)),
    # Numbers are cast to the dtype first, as in candle: 0.5 is 0, and what is out of range saturates.
    "affine of a half": (lambda x: x.affine(0.5, 0.0), np.zeros_like),
    "affine out of range": (lambda x: x.affine(1.0, 1e30), lambda x: x + np.iinfo(x.dtype).max),
    "affine of nan": (lambda x: x.affine(float("nan"), 2.0), lambda x: np.full_like(x, 2)),
    "clamp": (lambda x: x.clamp(2, 9), lambda x: np.clip(x, 2, 9)),
}


@KINDS
@pytest.mark.parametrize("name", INTEGERS)
@EXAMPLES
@given(st.data())
def test_integers_keep_their_dtype_and_wrap(name: str, kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(INTS))
    values = data.draw(arrays(dtype))
    call, numpy = INTEGERS[name]
    result = call(tensor(kind, values, dtype))
    with np.errstate(all="ignore"):
        want = numpy(values)
    assert result.dtype is dtype
    np.testing.assert_array_equal(result.numpy(), want)


@KINDS
@pytest.mark.parametrize("dtype", INTS, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "recip",
        "exp",
        "log",
        "sin",
        "cos",
        "tanh",
        "sqrt",
        "gelu",
        "gelu_erf",
        "erf",
        "silu",
        "sigmoid",
        "elu",
        "powf",
        "round_to",
        "norm",
    ],
)
def test_what_would_be_no_integer_is_refused(kind: Any, dtype: DType, name: str) -> None:
    arguments = {"elu": (1.0,), "powf": (2.0,), "round_to": (1,)}.get(name, ())
    with pytest.raises(error.UnsupportedDTypeForOpError, match=f"{name}: got dtype {dtype}") as caught:
        getattr(kind.new([1, 2], dtype=dtype), name)(*arguments)
    assert (caught.value.op, caught.value.dtype) == (name, dtype)


# --- two tensors ------------------------------------------------------------------------------


@st.composite
def pairs(draw: Any, dtype: DType, **limits: Any) -> tuple[Array, Array]:
    """Two arrays whose shapes broadcast."""
    found = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
    left, right = found.input_shapes
    return draw(arrays(dtype, left, **limits)), draw(arrays(dtype, right, **limits))


FLOAT_PAIRS: dict[str, tuple[Callable[[Any, Any], Any], dict[str, Any]]] = {
    "add": (np.add, {}),
    "sub": (np.subtract, {}),
    "mul": (np.multiply, {}),
    "div": (np.divide, {}),
    "maximum": (np.maximum, {}),
    "minimum": (np.minimum, {}),
    "pow": (np.power, {"low": 0.01, "high": 4.0, "finite": True}),
}


def both_forms(name: str, kind: Any, left: Array, right: Array, dtype: DType) -> list[tuple[Any, Array, Array]]:
    """The broadcasting method and, on operands of one shape, the strict one."""
    a, b = tensor(kind, left, dtype), tensor(kind, right, dtype)
    results = [(getattr(a, f"broadcast_{name}")(b), left, right)]
    if left.shape == right.shape:
        results.append((getattr(a, name)(b), left, right))
    else:
        with pytest.raises(error.ShapeMismatchBinaryOpError, match=f"{name}: got shapes"):
            getattr(a, name)(b)
    return results


@KINDS
@pytest.mark.parametrize("name", FLOAT_PAIRS)
@EXAMPLES
@given(st.data())
def test_pairs_of_floats(name: str, kind: Any, data: st.DataObject) -> None:
    numpy, limits = FLOAT_PAIRS[name]
    dtype = data.draw(st.sampled_from(FLOATS))
    left, right = data.draw(pairs(dtype, **limits))
    for result, a, b in both_forms(name, kind, left, right, dtype):
        with np.errstate(all="ignore"):
            want = rounded(np.asarray(numpy(a.astype(np.float64), b.astype(np.float64)), np.float64), dtype)
        assert (tuple(result.shape), result.dtype) == (want.shape, dtype)
        assert_float(result.numpy(), want, dtype)


def truncating(a: Array, b: Array) -> Array:
    a, b = np.broadcast_arrays(a, b)
    exact = [0 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(flat(a), flat(b))]
    bits = 8 * a.dtype.itemsize
    return np.array([value % 2**bits for value in exact], np.uint64).astype(a.dtype).reshape(a.shape)


def flat(values: Array) -> list[int]:
    return [int(value) for value in values.reshape(-1)]


INTEGER_PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": truncating,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@KINDS
@pytest.mark.parametrize("name", INTEGER_PAIRS)
@EXAMPLES
@given(st.data())
def test_pairs_of_integers(name: str, kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(INTS))
    left, right = data.draw(pairs(dtype))
    for result, a, b in both_forms(name, kind, left, right, dtype):
        with np.errstate(all="ignore"):
            want = INTEGER_PAIRS[name](a, b)
        assert result.dtype is dtype
        np.testing.assert_array_equal(result.numpy(), want)


@pytest.mark.parametrize("dtype", [DType.I16, DType.I32, DType.I64], ids=str)
def test_the_smallest_integer_by_minus_one_wraps_and_anything_by_zero_is_zero(dtype: DType) -> None:
    lowest = np.iinfo(NUMPY[dtype]).min
    left, right = Tensor.new([lowest, 7, -7], dtype=dtype), Tensor.new([-1, 0, 0], dtype=dtype)
    assert left.div(right).tolist() == [lowest, 0, 0]


COMPARED = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
COMPARED["ge"] = np.greater_equal


@KINDS
@pytest.mark.parametrize("name", COMPARED)
@EXAMPLES
@given(st.data())
def test_comparisons_are_u8(name: str, kind: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([*FLOATS, *INTS]))
    left, right = data.draw(pairs(dtype))
    results = both_forms(name, kind, left, right, dtype)
    number = data.draw(st.sampled_from([0, 1, 3] if dtype.is_int() else [0.0, 0.5, -1.0, float("inf"), float("nan")]))
    x, op = tensor(kind, left, dtype), CmpOp(name)
    results.append((getattr(x, name)(number), left, np.asarray(number, left.dtype)))
    results.append((x.cmp(number, op), left, np.asarray(number, left.dtype)))
    results.append((x.cmp(x, op), left, left))
    for result, a, b in results:
        assert result.dtype is DType.U8
        assert not result.track_op()
        np.testing.assert_array_equal(result.numpy(), COMPARED[name](a, b).astype(np.uint8))


def test_cmp_takes_a_cmp_op() -> None:
    with pytest.raises(mc.Error, match="cmp: got op 'lt'; takes CmpOp"):
        Tensor.new([1.0]).cmp(2.0, "lt")


@pytest.mark.parametrize("name", [*FLOAT_PAIRS, *COMPARED])
def test_dtypes_are_not_promoted_and_broadcasting_methods_take_tensors_only(name: str) -> None:
    x, y = Tensor.new([1.0]), Tensor.new([1.0], dtype="f16")
    for method in (name, f"broadcast_{name}"):
        with pytest.raises(error.DTypeMismatchError, match=f"^{name}: dtypes differ, lhs f32, rhs f16") as caught:
            getattr(x, method)(y)
        assert caught.value.op == name
    with pytest.raises(mc.Error, match=f"broadcast_{name}: got float for an operand; takes a tensor"):
        getattr(x, f"broadcast_{name}")(1.0)
    with pytest.raises(error.ShapeMismatchBinaryOpError, match=f"^broadcast_{name}: got shapes") as shapes:
        getattr(Tensor.new([1.0, 2.0]), f"broadcast_{name}")(Tensor.new([1.0, 2.0, 3.0]))
    assert shapes.value.op == f"broadcast_{name}"


# --- conversions ------------------------------------------------------------------------------


def converted(values: Array, source: DType, target: DType) -> Array:
    """The definition: Rust's ``as``."""
    if target.is_float():
        return rounded(values.astype(np.float64), target)
    if source.is_int():
        return values.astype(NUMPY[target])
    info = np.iinfo(NUMPY[target])
    numbers = [0.0 if math.isnan(value) else value for value in values.astype(np.float64).reshape(-1)]
    whole = [info.min if n <= info.min else info.max if n >= info.max else int(n) for n in numbers]
    return np.array(whole, NUMPY[target]).reshape(values.shape)


@KINDS
@pytest.mark.parametrize("target", [*FLOATS, *INTS], ids=str)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_conversions(target: DType, kind: Any, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([*FLOATS, *INTS]))
    values = data.draw(arrays(source))
    result = tensor(kind, values, source).to_dtype(target)
    want = converted(values, source, target)
    assert result.dtype is target
    if target.is_int():
        np.testing.assert_array_equal(result.numpy(), want)
    else:
        # I64 reaches a half or float32 through a wider float, which rounds a tie twice; everything else rounds once.
        assert_float(result.numpy(), want, target, 1 if source is DType.I64 else 0)


EDGES = [0.0, -0.0, 0.9, -0.9, -1.5, 254.9, 255.0, 256.0, 300.0, 32767.5, -32768.5, 40000.0, 2.0**31, -(2.0**31)]
EDGES += [2.0**31 - 1, 2.0**32 - 1, 2.0**32, 2.0**63, -(2.0**63), 1e300, -1e300, *(2.0**p for p in (7, 15, 16, 62))]
EDGES += [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("target", INTS, ids=str)
@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_floats_saturate_at_the_ends_of_integers(source: DType, target: DType) -> None:
    values = rounded(np.array(EDGES), source).astype(NUMPY[source])
    np.testing.assert_array_equal(
        tensor(Tensor, values, source).to_dtype(target).numpy(), converted(values, source, target)
    )


@pytest.mark.parametrize("target", [DType.F16, DType.BF16], ids=str)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_f64_is_rounded_to_a_half_once(target: DType, data: st.DataObject) -> None:
    """Next to the middle of two halves, where rounding to float32 on the way would lose the side."""
    near = data.draw(arrays(target, (4,), finite=True)).astype(np.float64)
    above = rounded(near * (1 + LIMITS[target][2]), target)
    above = np.where(np.isfinite(above), above, near)
    values = (near + above) / 2 * (1 + np.array([0, 1e-12, -1e-12, 1e-15]))
    got = tensor(Tensor, values, DType.F64).to_dtype(target).numpy()
    want = rounded(values, target)
    small = np.abs(values) < 2 * LIMITS[target][1]
    np.testing.assert_array_equal(got[~small], want[~small])
