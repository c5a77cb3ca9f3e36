"""Metal's language as the emulator spells it in C++, against NumPy and MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from emulator import Emulator, Fault, available
from given import Given, how

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])

Array = np.ndarray[Any, Any]


def mapped(expression: str, values: mx.array, to: mx.Dtype) -> mx.array:
    """An expression of v for every value."""
    program = Given(
        "mapped",
        ("x",),
        ("y",),
        body=f"const uint i = thread_position_in_grid.x;\nconst auto v = x[i];\ny[i] = {expression};\n",
    )
    (y,) = Emulator().launch(program, [values], how((values.shape, to), grid=values.size, threadgroup=64))
    return y


ALL_BITS = mx.arange(1 << 16).astype(mx.uint16)


@pytest.mark.parametrize(("dtype", "name"), [(mx.float16, "half"), (mx.bfloat16, "bfloat")])
def test_every_half_becomes_the_float_it_is(dtype: mx.Dtype, name: str) -> None:
    halves = ALL_BITS.view(dtype)
    got, wanted = mapped("float(v)", halves, mx.float32), halves.astype(mx.float32)
    assert mx.array_equal(got, wanted, equal_nan=True)
    back = mapped(f"{name}(v)", wanted, dtype)
    assert mx.array_equal(back, halves, equal_nan=True)


@pytest.mark.parametrize(("dtype", "name"), [(mx.float16, "half"), (mx.bfloat16, "bfloat")])
def test_floats_are_rounded_to_the_nearest_even_half(dtype: mx.Dtype, name: str) -> None:
    halves = np.array(ALL_BITS.view(dtype).astype(mx.float32))
    finite = np.sort(halves[np.isfinite(halves)]).astype(np.float64)
    between = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    above, below = np.nextafter(between, np.float32(np.inf)), np.nextafter(between, np.float32(-np.inf))
    edges = np.array([np.inf, -np.inf, np.nan, 65519.9, 65520, -65520, 1e38, 3.4028235e38, 1e-45, -1e-45], np.float32)
    values = np.concatenate([between, above, below, edges])
    values = mx.array(np.resize(values, -(-len(values) // 64) * 64))
    assert mx.array_equal(mapped(f"{name}(v)", values, dtype), values.astype(dtype), equal_nan=True)


UNARY: dict[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "exp": np.exp,
    "exp2": np.exp2,
    "exp10": lambda v: 10.0**v,
    "fabs": np.abs,
    "floor": np.floor,
    "rint": np.rint,
    "round": lambda v: np.trunc(v + np.copysign(0.5, v)),
    "sin": np.sin,
    "sinh": np.sinh,
    "tan": np.tan,
    "tanh": np.tanh,
    "atan": np.arctan,
    "trunc": np.trunc,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sqrt": np.sqrt,
    "rsqrt": lambda v: 1 / np.sqrt(v),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "atan2": np.arctan2,
    "copysign": np.copysign,
    "fmax": np.fmax,
    "fmin": np.fmin,
    "fmod": np.fmod,
    "max": np.fmax,
    "min": np.fmin,
    "pow": lambda v, w: np.power(np.abs(v), w),
}


@pytest.mark.parametrize("space", ["metal", "metal::precise", "metal::fast"])
def test_mathematics(space: str) -> None:
    values = np.linspace(-4, 4, 64).astype(np.float32)
    other = np.roll(values, 7)
    calls = [f"{name}(v[i])" for name in UNARY]
    calls += [f"{name}({'metal::abs(v[i])' if name == 'pow' else 'v[i]'}, w[i])" for name in BINARY]
    body = "".join(f"y[{k} * 64 + i] = {space}::{call};\n" for k, call in enumerate(calls))
    program = Given("maths", ("v", "w"), ("y",), body=f"const uint i = thread_position_in_grid.x;\n{body}")
    launch = how(((len(UNARY) + len(BINARY), 64), mx.float32), grid=64)
    (y,) = Emulator().launch(program, [mx.array(values), mx.array(other)], launch)
    exact, exact_other = values.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):  # logarithms and roots of negative values
        wanted = [function(exact) for function in UNARY.values()]
        wanted += [function(exact, exact_other) for function in BINARY.values()]
    for name, got, want in zip([*UNARY, *BINARY], np.array(y), wanted):
        # The C library's float functions are within two units in the last place.
        np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-12, err_msg=name)


OTHER: dict[str, tuple[mx.Dtype, mx.Dtype, list[float], list[float]]] = {
    "metal::isnan(v)": (mx.float32, mx.bool_, [1, np.inf, np.nan, 0], [0, 0, 1, 0]),
    "metal::isinf(v)": (mx.float32, mx.bool_, [1, -np.inf, np.nan, 0], [0, 1, 0, 0]),
    "metal::isfinite(v)": (mx.float32, mx.bool_, [1, np.inf, np.nan, 0], [1, 0, 0, 1]),
    "metal::clamp(v, -1.0f, 2.0f)": (mx.float32, mx.float32, [-3, -1, 0.5, 9], [-1, -1, 0.5, 2]),
    "metal::clamp(v, -1, 2)": (mx.int32, mx.int32, [-3, -1, 0, 9], [-1, -1, 0, 2]),
    "metal::select(1.0f, 2.0f, v > 0)": (mx.int32, mx.float32, [-3, 0, 1, 9], [1, 1, 2, 2]),
    "metal::fma(v, 3.0f, 0.5f)": (mx.float32, mx.float32, [0, 1, 2, -1], [0.5, 3.5, 6.5, -2.5]),
    "metal::min(v, 3u)": (mx.uint32, mx.uint32, [0, 2, 4, 9], [0, 2, 3, 3]),
    "metal::max(v, 3)": (mx.int32, mx.int32, [-7, 2, 4, 9], [3, 3, 4, 9]),
    "metal::abs(v)": (mx.int32, mx.int32, [-7, 2, 0, -1], [7, 2, 0, 1]),
}


@pytest.mark.parametrize("expression", OTHER)
def test_other_functions(expression: str) -> None:
    of, to, given, wanted = OTHER[expression]
    got = mapped(expression, mx.array(given * 16).astype(of), to)
    np.testing.assert_array_equal(np.array(got)[:4], np.array(wanted, np.array(got).dtype))


LANES = np.arange(32)
SIMD: dict[str, Callable[[Array], Array]] = {
    "simd_sum(v)": lambda v: np.full(32, v.sum()),
    "simd_max(v)": lambda v: np.full(32, v.max()),
    "simd_min(v)": lambda v: np.full(32, v.min()),
    "simd_broadcast(v, 5)": lambda v: np.full(32, v[5]),
    "simd_broadcast_first(v)": lambda v: np.full(32, v[0]),
    "simd_shuffle(v, (lane * 7 + 3) % 32)": lambda v: v[(LANES * 7 + 3) % 32],
    "simd_shuffle_xor(v, 9)": lambda v: v[LANES ^ 9],
    "simd_shuffle_down(v, 2)": lambda v: v[2:],
    "simd_shuffle_up(v, 3)": lambda v: v[:-3],
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.int32, mx.uint32])
@pytest.mark.parametrize("expression", SIMD)
def test_simdgroup_operations(expression: str, dtype: mx.Dtype) -> None:
    values = (mx.arange(64) * 37 % 41 + 1).astype(dtype)  # sums are exact
    got = np.array(mapped(expression.replace("lane", "thread_index_in_simdgroup"), values, dtype)).reshape(2, 32)
    for simdgroup, lanes in zip(np.array(values).reshape(2, 32), got):
        wanted = SIMD[expression](simdgroup)
        # What comes from outside the simdgroup is undefined.
        inside = lanes[3:] if "up" in expression else lanes[: len(wanted)]
        np.testing.assert_array_equal(inside, wanted)


def test_simdgroup_votes() -> None:
    values = mx.array([1.0] * 32 + [1.0] * 31 + [0.0] + [0.0] * 64)
    for expression, wanted in {"simd_all(v > 0.0f)": [1, 0, 0, 0], "simd_any(v > 0.0f)": [1, 1, 0, 0]}.items():
        got = np.array(mapped(expression, values, mx.bool_)).reshape(4, 32)
        np.testing.assert_array_equal(got, np.array(wanted, bool)[:, None] & np.ones((4, 32), bool))


def test_a_maximum_ignores_nan() -> None:
    values = mx.array([float("nan")] * 3 + [2.0] + [1.0] * 28 + [float("nan")] * 32)
    got = np.array(mapped("simd_max(v)", values, mx.float32))
    assert (got[:32] == 2.0).all()
    assert np.isnan(got[32:]).all()


def test_what_does_not_compile_says_where() -> None:
    program = Given("wrong", (), ("y",), body="y[thread_position_in_grid.x] = 1.0f;\ny[0] = unknown;\n")
    with pytest.raises(Fault, match=r"wrong.*unknown.*line 2 of the body"):
        Emulator().launch(program, [], how(((32,), mx.float32)))
