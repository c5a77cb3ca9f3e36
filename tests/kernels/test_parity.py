"""Every kernel against its plain definition in float64: values, gradients, halves, awkward shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metal_candle import DType
from metal_candle.kernels.attention import attention
from metal_candle.kernels.cross_entropy import cross_entropy
from metal_candle.kernels.elementary import exp, sigmoid, silu
from metal_candle.kernels.fused_lora import add_lora, lora
from metal_candle.kernels.gelu_erf import gelu_erf
from metal_candle.kernels.head_cross_entropy import head_cross_entropy
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.linear import linear
from metal_candle.kernels.rms_norm import rms_norm
from metal_candle.kernels.rope import rope
from metal_candle.kernels.softmax import log_softmax, softmax
from metal_candle.kernels.swiglu import swiglu

import mlx.core as mx
import numpy as np
import pytest
from tolerance import VALUE, assert_near


@dataclass(frozen=True)
class Case:
    """A kernel on arrays of these shapes; a shape of ``None`` is an input left out, an int a number of classes."""

    kernel: Kernel
    shapes: tuple[Any, ...]
    params: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.kernel.name}{list(self.shapes)}{list(self.params)}".replace(" ", "")

    def inputs(self, dtype: mx.Dtype) -> list[mx.array | None]:
        made: list[mx.array | None] = []
        for i, shape in enumerate(self.shapes):
            key = mx.random.key(i)
            if shape is None:
                made.append(None)
            elif isinstance(shape, int):
                rows = made[0].shape[:1] if self.kernel is head_cross_entropy else made[0].shape[:-1]
                made.append(mx.random.randint(0, shape, rows, key=key))
            else:
                made.append(mx.random.normal(shape, key=key).astype(dtype))
        return made


CASES = [
    Case(exp, ((70, 123),)),
    Case(sigmoid, ((70, 123),)),
    Case(silu, ((3, 70, 123),)),
    Case(gelu_erf, ((3, 70, 123),)),
    Case(gelu_erf, ((70,),)),
    Case(swiglu, ((70, 123), (70, 123))),
    Case(swiglu, ((3, 1000, 123), (3, 1000, 123))),
    Case(swiglu, ((), ())),
    Case(swiglu, ((0, 5), (0, 5))),
    Case(softmax, ((70, 123),)),
    Case(softmax, ((2, 3, 40, 160),), (0.3, "causal")),
    Case(softmax, ((2, 3, 40, 50),), (1.0, "causal")),
    Case(softmax, ((1, 9000),)),
    Case(softmax, ((9000, 64),), (2.0,)),
    Case(softmax, ((3000, 1),)),
    Case(softmax, ((0, 4),)),
    Case(softmax, ((7,),)),
    Case(log_softmax, ((70, 123),)),
    Case(log_softmax, ((2, 2, 300, 512),)),
    Case(log_softmax, ((5,),)),
    Case(rms_norm, ((70, 123), (123,)), (1e-5,)),
    Case(rms_norm, ((2, 3, 5, 64), None), (1e-5,)),
    Case(rms_norm, ((1,), (1,)), (1e-5,)),
    Case(rms_norm, ((0, 8), (8,)), (1e-5,)),
    Case(rms_norm, ((2, 450, 600), (600,)), (1e-5,)),
    Case(rms_norm, ((9000, 64), None), (1e-5,)),
    Case(rope, ((2, 3, 5, 8), (5, 4), (5, 4))),
    Case(rope, ((1, 1, 1, 2), (1, 1), (1, 1))),
    Case(rope, ((2, 3, 5, 8), (5, 4), (5, 4)), (True,)),
    Case(linear, ((2, 3, 13), (7, 13))),
    Case(linear, ((13,), (7, 13))),
    Case(linear, ((0, 13), (7, 13))),
    Case(linear, ((2, 3, 0), (7, 0))),
    Case(linear, ((2, 3, 13), (7, 13), (7,))),
    Case(linear, ((3, 13), (7, 13), (7,))),
    Case(linear, ((13,), (7, 13), (7,))),
    Case(lora, ((5, 13), (13, 4), (4, 7)), (0.5,)),
    Case(lora, ((2, 3, 13), (13, 1), (1, 7)), (2.0,)),
    Case(lora, ((13,), (13, 4), (4, 7)), (0.5,)),
    Case(add_lora, ((2, 3, 7), (2, 3, 13), (13, 4), (4, 7)), (0.5,)),
    Case(add_lora, ((7,), (13,), (13, 4), (4, 7)), (0.5,)),
    Case(cross_entropy, ((70, 123), 123)),
    Case(cross_entropy, ((2, 40, 1000), 1000), (0.1,)),
    Case(cross_entropy, ((3, 5), 5)),
    Case(attention, ((1, 4, 40, 16), (1, 2, 40, 16), (1, 2, 40, 16)), (0.25, None)),
    Case(attention, ((2, 6, 150, 8), (2, 2, 150, 8), (2, 2, 150, 8)), (0.3, "causal")),
    Case(attention, ((1, 3, 70, 8), (1, 3, 200, 8), (1, 3, 200, 8)), (0.3, "causal")),
    Case(attention, ((1, 6, 1, 8), (1, 2, 33, 8), (1, 2, 33, 8)), (0.3, "causal")),
    Case(attention, ((1, 6, 1, 8), (1, 2, 3000, 8), (1, 2, 3000, 8)), (0.3, "causal")),
    Case(attention, ((1, 2, 5, 1), (1, 1, 5, 1), (1, 1, 5, 1)), (1.0, "causal")),
    Case(head_cross_entropy, ((7, 16), (50, 16), 50)),
    Case(head_cross_entropy, ((150, 8), (4200, 8), 4200)),
    Case(head_cross_entropy, ((1, 8), (9000, 8), 9000), (0.1,)),
]
GRADIENT_CASES = [case for case in CASES if 0 not in (case.shapes[0] or ())]


def floats(arrays: Sequence[Any]) -> list[int]:
    return [i for i, a in enumerate(arrays) if a is not None and mx.issubdtype(a.dtype, mx.floating)]


def wide(array: mx.array) -> mx.array:
    return array.astype(mx.float64)


def reference(case: Case, inputs: Sequence[Any], cotangent: mx.array | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """The definition in float64 on the CPU and, for a cotangent, the gradients of its float inputs by MLX."""
    with mx.stream(mx.cpu):
        which = floats(inputs)

        def function(*values: mx.array) -> mx.array:
            full = list(inputs)
            for i, value in zip(which, values):
                full[i] = value
            if case.kernel in (head_cross_entropy, cross_entropy):
                return losses(*full, *case.params)
            return case.kernel.reference(*full, *case.params)

        given = [wide(inputs[i]) for i in which]
        if cotangent is None:
            return np.array(function(*given)), []
        outputs, gradients = mx.vjp(function, given, [wide(cotangent)])
        return np.array(outputs[0]), [np.array(gradient) for gradient in gradients]


def losses(*arguments: Any) -> mx.array:
    """Cross entropy without the definition's rounding to float32."""
    if len(arguments) > 2 and isinstance(arguments[2], mx.array):
        hidden, weight, targets, *rest = arguments
        logits = hidden @ weight.T
    else:
        logits, targets, *rest = arguments
    smoothing = rest[0] if rest else 0.0
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    picked = (1 - smoothing) * picked + smoothing * logits.mean(axis=-1)
    return mx.logsumexp(logits, axis=-1) - picked


def assert_near_its_largest(got: mx.array, want: np.ndarray, dtype: DType) -> None:
    """Within the table's tolerance of the largest element: a sum's rounding error does not shrink with the sum."""
    scale = max(float(np.abs(want).max(initial=0)), 1.0)
    assert_near(np.array(got.astype(mx.float32)) / scale, want / scale, VALUE[dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
def test_value(case: Case, dtype: DType) -> None:
    inputs = case.inputs(dtype.mlx())
    got = case.kernel(*inputs, *case.params)
    want, _ = reference(case, inputs, None)
    is_loss = case.kernel in (head_cross_entropy, cross_entropy)
    assert got.dtype == (mx.float32 if is_loss else dtype.mlx())
    assert_near_its_largest(got, want, dtype)


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
def test_gradients(case: Case, dtype: DType) -> None:
    inputs = case.inputs(dtype.mlx())
    outputs = case.kernel.forward(*inputs, *case.params)
    cotangent = mx.random.normal(outputs[0].shape, key=mx.random.key(99)).astype(outputs[0].dtype)
    _, want = reference(case, inputs, cotangent)
    which = floats(inputs)
    needs = tuple(i in which for i in range(len(inputs)))
    # With what forward saved, and with the result alone.
    for given in (outputs, outputs[0]):
        got = case.kernel.vjp(cotangent, inputs, given, needs, *case.params)
        assert [g is not None for g in got] == list(needs)
        for i, expected in zip(which, want):
            assert got[i].dtype == inputs[i].dtype
            assert_near_its_largest(got[i], expected, dtype)


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_gradients_that_mlx_asks_for(case: Case) -> None:
    inputs = case.inputs(mx.float32)
    which = floats(inputs)
    cotangent = mx.random.normal(case.kernel(*inputs, *case.params).shape, key=mx.random.key(99))
    _, want = reference(case, inputs, cotangent)

    def function(*values: mx.array) -> mx.array:
        full = list(inputs)
        for i, value in zip(which, values):
            full[i] = value
        return case.kernel(*full, *case.params)

    _, got = mx.vjp(function, [inputs[i] for i in which], [cotangent])
    for gradient, expected in zip(got, want):
        assert_near_its_largest(gradient, expected, DType.F32)


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_only_the_gradients_asked_for(case: Case) -> None:
    inputs = case.inputs(mx.float32)
    outputs = case.kernel.forward(*inputs, *case.params)
    cotangent = mx.ones_like(outputs[0])
    for wanted in floats(inputs):
        needs = tuple(i == wanted for i in range(len(inputs)))
        got = case.kernel.vjp(cotangent, inputs, outputs, needs, *case.params)
        assert [g is not None for g in got] == list(needs)
        assert got[wanted].shape == inputs[wanted].shape


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shapes[0]) > 1 and 0 not in c.shapes[0]], ids=str)
def test_not_contiguous(case: Case) -> None:
    inputs = case.inputs(mx.float32)
    turned = [a if i else mx.contiguous(mx.swapaxes(a, -1, -2)).swapaxes(-1, -2) for i, a in enumerate(inputs)]
    got, want = (case.kernel(*arguments, *case.params) for arguments in (turned, inputs))
    assert_near_its_largest(got, np.array(want, np.float64), DType.F32)


@pytest.mark.parametrize("kernel", [softmax, log_softmax])
def test_rows_without_a_finite_maximum(kernel: Kernel) -> None:
    x = np.random.default_rng(0).normal(size=(6, 1000)).astype(np.float32)
    x[0], x[1, 5], x[2, 7], x[3, 500:], x[4] = -np.inf, np.inf, np.nan, -np.inf, 3e38
    got, want = (np.array(function(mx.array(x))) for function in (kernel, kernel.reference))
    assert np.isnan(got[:3]).all() == np.isnan(want[:3]).all()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got[3:], want[3:], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mask", ["additive", "boolean", "broadcast"])
def test_softmax_of_masked_rows(mask: str) -> None:
    x = mx.random.normal((2, 3, 40, 50), key=mx.random.key(0))
    keep = mx.random.uniform(shape=(40, 50), key=mx.random.key(1)) > 0.3
    if mask == "broadcast":
        keep = keep[:1]
    given = keep if mask == "boolean" else mx.where(keep, 0.0, -mx.inf)
    got, want = softmax(x, 0.5, given), softmax.reference(x, 0.5, given)
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=5e-6, atol=1e-7)
    assert float(mx.where(keep, 0.0, got).max()) == 0.0


def test_finite_differences() -> None:
    # A check that does not rest on MLX's differentiation: central differences of NumPy float64.
    rng = np.random.default_rng(3)
    gate, up, g = rng.normal(size=(3, 64, 70))

    def loss(gate: np.ndarray) -> float:
        return float((gate / (1 + np.exp(-gate)) * up * g).sum())

    step, (row, column) = 1e-5, (5, 6)
    moved = np.zeros_like(gate)
    moved[row, column] = step
    want = (loss(gate + moved) - loss(gate - moved)) / (2 * step)
    inputs = tuple(mx.array(a.astype(np.float32)) for a in (gate, up))
    got = swiglu.vjp(mx.array(g.astype(np.float32)), inputs, swiglu.forward(*inputs), (True, False))[0]
    assert float(got[row, column]) == pytest.approx(want, rel=1e-5)
