"""A launch of ours against its kernel's plain definition, computed in float32: values, gradients, odd numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from metal_candle.kernels.kernel import Kernel

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
WIDTHS = (1, 3, 31, 33, 127, 301, 576, 1000, 4097)
"""Around a simdgroup, a threadgroup and the widths of models; odd, since a read past the end hides in even ones."""


class Tolerance(NamedTuple):
    """``|got - want| <= absolute · largest + relative · |want|``, largest that of the finite wanted values or 1."""

    relative: float
    absolute: float


# Against a float32 reference of the same rounded inputs.
# float32: sums of up to 4,097 terms in another order, each off by 2^-24 of the partial sum: 6e-8 · sqrt(4097) = 4e-6.
# halves: one rounding of the result, 2^-11 and 2^-8 of it; twice that where a rounded value is multiplied once more
# (a norm's by its weight, a sum with a residual).
FORWARD = {
    mx.float32: Tolerance(4e-6, 1e-6),
    mx.float16: Tolerance(2**-10, 2**-11),
    mx.bfloat16: Tolerance(2**-7, 2**-8),
}
# A gradient multiplies results that were rounded already, and sums them over rows: four roundings.
BACKWARD = {
    mx.float32: Tolerance(2e-5, 4e-6),
    mx.float16: Tolerance(2**-8, 2**-9),
    mx.bfloat16: Tolerance(2**-5, 2**-6),
}


def normal(*shape: int, dtype: mx.Dtype = mx.float32, key: int = 0) -> mx.array:
    """Normal numbers, the same for the same key."""
    return mx.random.normal(shape, key=mx.random.key(key)).astype(dtype)


def wide(value: Any) -> Any:
    """An argument with halves widened to float32."""
    return value.astype(mx.float32) if isinstance(value, mx.array) and value.dtype in DTYPES else value


def assert_near(got: mx.array, want: mx.array, tolerance: Tolerance, what: str = "result") -> None:
    """Assert equal shapes and near values; NaN and infinities have to be in the same places.

    What the dtype of ``got`` cannot hold counts as infinite.
    """
    assert got.shape == want.shape, f"{what}: {got.shape} for {want.shape}"
    expected = np.array(want.astype(got.dtype).astype(mx.float32))
    exact = np.where(np.isfinite(expected), np.array(want.astype(mx.float32)), expected)
    finite = np.abs(exact[np.isfinite(exact)])
    largest = max(1.0, float(finite.max())) if finite.size else 1.0
    np.testing.assert_allclose(
        np.array(got.astype(mx.float32)), exact, tolerance.relative, tolerance.absolute * largest, err_msg=what
    )


def check(kernel: Kernel, inputs: Sequence[Any], *params: Any) -> None:
    """Assert that our launch is what the kernel chooses and that it gives what the reference gives."""
    launched(kernel, inputs, *params)
    outputs = kernel.forward(*inputs, *params)[: kernel.results]
    mx.eval(outputs)
    expected = kernel.reference(*[wide(value) for value in (*inputs, *params)])
    wanted = expected if isinstance(expected, tuple) else (expected,)
    dtype = next(value.dtype for value in inputs if isinstance(value, mx.array))
    for i, (got, want) in enumerate(zip(outputs, wanted)):
        assert got.dtype == dtype, f"{kernel.name}: {got.dtype} of {dtype}"
        assert_near(got, want, FORWARD[dtype], f"{kernel.name}, result {i}")


def launched(kernel: Kernel, inputs: Sequence[Any], *params: Any) -> None:
    """Assert that our launch is what the kernel chooses for these arguments."""
    kernel.choose(*inputs, *params)
    assert kernel.own is not None
    assert kernel.last is not None
    assert kernel.last[0] == kernel.own.name, kernel.last


def check_gradients(kernel: Kernel, inputs: Sequence[Any], *params: Any) -> None:
    """Assert that the gradients of all floating inputs are the reference's, by our own reverse mode and by MLX's."""
    launched(kernel, inputs, *params)
    outputs = kernel.forward(*inputs, *params)
    results = outputs[: kernel.results]
    cotangents = tuple(normal(*r.shape, dtype=r.dtype, key=70 + i) for i, r in enumerate(results))
    needs = [isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating) for value in inputs]
    places = [i for i, need in enumerate(needs) if need]
    given = cotangents if kernel.results > 1 else cotangents[0]
    found = kernel.vjp(given, inputs, outputs, needs, *params)

    def through(function: Any, values: Sequence[Any], *arrays: mx.array) -> list[mx.array]:
        full = list(values)
        for i, array in zip(places, arrays):
            full[i] = array
        got = function(*full[: len(inputs)], *full[len(inputs) :])
        return list(got) if isinstance(got, tuple) else [got]

    arguments = (*inputs, *params)
    _, by_mlx = mx.vjp(lambda *a: through(kernel, arguments, *a), [inputs[i] for i in places], list(cotangents))
    exact = [wide(value) for value in arguments]
    _, wanted = mx.vjp(
        lambda *a: through(kernel.reference, exact, *a), [exact[i] for i in places], [wide(c) for c in cotangents]
    )
    dtype = results[0].dtype
    for i, place in enumerate(places):
        gradient = found[place]
        assert gradient is not None, f"{kernel.name}: no gradient of input {place}"
        assert gradient.dtype == inputs[place].dtype
        for got, whose in ((gradient, "ours"), (by_mlx[i], "MLX's")):
            assert_near(got, wanted[i], BACKWARD[dtype], f"{kernel.name}, gradient of input {place}, {whose}")
