"""``grouped_lora`` on tensors: lazy, eager, compiled; the launch, gradients, ids that name nothing, refusals."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, error

import numpy as np
import pytest

RANKS, SCALES = (4, 2), (0.5, -1.5)


def arrays(rows: int = 5) -> list[Any]:
    draw = np.random.default_rng(0)
    shapes = ((rows, 7), (rows, 13), (6, 13), (6, 7))
    base, x, a, b = (draw.normal(size=shape).astype(np.float32) for shape in shapes)
    return [base, x, np.array([1, 0, 2**32 - 1, 1, 2][:rows], np.uint32), a, b]


def wanted(base: Any, x: Any, ids: Any, a: Any, b: Any) -> Any:
    result = base.copy()
    for row, own, scale in ((0, slice(4, 6), -1.5), (1, slice(0, 4), 0.5), (3, slice(4, 6), -1.5)):
        result[row] += scale * (a[own] @ x[row]) @ b[own]
    return result


def update(base: Any, *others: Any) -> Any:
    return base.grouped_lora(*others, RANKS, SCALES)


def test_lazy_eager_and_compiled_are_one_launch(device: str) -> None:
    given = arrays()
    tensors = [Tensor.new(each) for each in given]
    lazy = update(*[LazyTensor.from_tensor(each) for each in tensors])
    assert f"grouped_lora, {device}: METAL_CANDLE_KERNELS=custom" in lazy.explain()
    for result in (lazy.eval(), update(*tensors)):
        # float32 sums of 13 terms.
        np.testing.assert_allclose(result.numpy(), wanted(*given), rtol=1e-5, atol=1e-5)


def test_compiled() -> None:
    given = arrays()
    compiled = mc.compile(update)
    np.testing.assert_allclose(
        compiled(*[Tensor.new(each) for each in given]).numpy(), wanted(*given), rtol=1e-5, atol=1e-5
    )


def test_gradients_of_variables(device: str) -> None:
    base, x, ids, a, b = arrays()
    variables = [Var.new(each) for each in (a, b)]
    lazy = [LazyTensor.from_tensor(Tensor.new(each)) for each in (base, x, ids)]
    result = update(*lazy, *[LazyTensor.from_tensor(each) for each in variables])
    grads = result.sum_all().backward()
    ones = np.ones(7, np.float32)
    of_a, of_b = np.zeros_like(a), np.zeros_like(b)
    for row, own, scale in ((0, slice(4, 6), -1.5), (1, slice(0, 4), 0.5), (3, slice(4, 6), -1.5)):
        # d/dA of scale · (A x) · (B 1), and d/dB.
        of_a[own] += scale * np.outer(b[own] @ ones, x[row])
        of_b[own] += scale * np.outer(a[own] @ x[row], ones)
    for variable, want in zip(variables, (of_a, of_b)):
        np.testing.assert_allclose(grads[variable].numpy(), want, rtol=1e-5, atol=1e-5)


def test_refusals() -> None:
    base, x, ids, a, b = (Tensor.new(each) for each in arrays())
    cases: list[tuple[tuple[Any, ...], tuple[Any, ...], type[Exception], str]] = [
        ((base, x, ids, a, b), ((4,), SCALES), error.ArgumentValueError, "takes a rank above 0 and a scale each"),
        ((base, x, ids, a, b), ((6, 0), SCALES), error.ArgumentValueError, "takes a rank above 0 and a scale each"),
        ((base, x, ids, a, b), ((4, 3), SCALES), error.ShapeMismatchBinaryOpError, "A (7, in) and B (7, out)"),
        ((x, x, ids, a, b), (RANKS, SCALES), error.ShapeMismatchBinaryOpError, "base (…, out) and x (…, in)"),
        ((base, base, ids, a, b), (RANKS, SCALES), error.ShapeMismatchBinaryOpError, "x (…, in) and A (ranks, in)"),
        ((base, x, ids.narrow(0, 0, 4), a, b), (RANKS, SCALES), error.ShapeMismatchError, "got ids (4,)"),
        ((base, x, base, a, b), (RANKS, SCALES), error.UnsupportedDTypeForOpError, "ids of"),
        ((base, x.to_dtype(DType.F16), ids, a, b), (RANKS, SCALES), error.DTypeMismatchError, "grouped_lora"),
        ((base, x, ids, a, b), (6, SCALES), error.ArgumentTypeError, "got 6 for ranks; takes integers, one for each"),
        ((base, x, ids, a, b), ((4.5, 1.5), SCALES), error.ArgumentTypeError, "got 4.5 among ranks; takes integers"),
        ((base, x, ids, a, b), ((4.0, 2), SCALES), error.ArgumentTypeError, "got 4.0 among ranks; takes integers"),
        ((base, x, ids, a, b), ("42", SCALES), error.ArgumentTypeError, "got '42' for ranks; takes integers"),
        (
            (base, x, ids, a, b),
            (RANKS, 0.5),
            error.ArgumentTypeError,
            "got 0.5 for scales; takes numbers, one for each",
        ),
        ((base, x, ids, a, b), (RANKS, (1, "2")), error.ArgumentTypeError, "got '2' among scales; takes numbers"),
    ]
    for (first, *others), params, kind, message in cases:
        with pytest.raises(kind) as raised:
            first.grouped_lora(*others, *params)
        assert message in str(raised.value)
        assert str(raised.value).startswith("grouped_lora") or "grouped_lora" in str(raised.value)
