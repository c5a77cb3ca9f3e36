"""Losses of numbers: ``mse``, ``huber``, ``binary_cross_entropy_with_logit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.nn import loss

import losses
import mlx.nn as mlx_nn
import numpy as np
import pytest
from checking import assert_slopes, check_dtypes, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

REDUCTIONS = pytest.mark.parametrize("reduction", losses.REDUCTIONS)
DELTA = 0.7
OURS: dict[str, Callable[..., Any]] = {
    "mse": loss.mse,
    "huber": lambda inp, target, **keywords: loss.huber(inp, target, DELTA, **keywords),
    "binary_cross_entropy_with_logit": loss.binary_cross_entropy_with_logit,
}
WANT: dict[str, Callable[[Any, Any], Any]] = {
    "mse": lambda x, t: (x - t) ** 2,
    "huber": lambda x, t: losses.huber(x - t, DELTA),
    "binary_cross_entropy_with_logit": lambda x, t: np.logaddexp(0, x) - x * t,
}
NAMES = pytest.mark.parametrize("name", OURS)
INP, TARGET = normal(4, 5) * 2, np.random.default_rng(1).uniform(0, 1, (4, 5)).astype(np.float32)
MASK = np.array([[1, 0, 2, 0.5, 1]], np.float32)


@NAMES
@REDUCTIONS
@pytest.mark.parametrize("masked", [False, True])
def test_values(name: str, reduction: Any, masked: bool) -> None:
    masks = (MASK,) if masked else ()

    def ours(inp: Any, target: Any, *mask: Any) -> Any:
        return OURS[name](inp, target, reduction=reduction, mask=mask[0] if mask else None)

    def want(inp: Any, target: Any, *mask: Any) -> Any:
        return losses.reduced(WANT[name](inp, target), mask[0] if mask else None, reduction)

    check_dtypes(ours, (INP, TARGET, *masks), want)
    assert_slopes(lambda x, t: ours(x, t, *(x._lift(Tensor.new(m)) for m in masks)), INP, TARGET)
    if masked:
        assert_slopes(lambda x, w: ours(x, x * 0.3, w), INP, MASK + 0.5)


@NAMES
@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([DType.F64, DType.F32, DType.F16, DType.BF16]),
    seed=st.integers(0, 99),
)
def test_any_shape(name: str, shape: list[int], dtype: DType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inp, target = Tensor.new(rng.normal(size=shape), dtype=dtype), Tensor.new(rng.uniform(size=shape), dtype=dtype)
    x, t = (each.to_dtype(DType.F64).numpy() for each in (inp, target))
    for reduction in losses.REDUCTIONS:
        found = OURS[name](inp, target, reduction=reduction)
        want = losses.reduced(WANT[name](x, t), None, reduction)
        assert (tuple(found.shape), found.dtype) == (want.shape, dtype)
        # A half's difference has its own rounding, which squaring doubles.
        assert_near(found.numpy(), want, VALUE[dtype]._replace(relative=2 * VALUE[dtype].relative))


@REDUCTIONS
def test_as_mlx(reduction: Any) -> None:
    inp, target = Tensor.new(INP), Tensor.new(TARGET)
    theirs = {
        "mse": mlx_nn.losses.mse_loss(inp.mlx(), target.mlx(), reduction=reduction),
        "huber": mlx_nn.losses.huber_loss(inp.mlx(), target.mlx(), delta=DELTA, reduction=reduction),
        "binary_cross_entropy_with_logit": mlx_nn.losses.binary_cross_entropy(
            inp.mlx(), target.mlx(), reduction=reduction
        ),
    }
    for name, their in theirs.items():
        assert_near(OURS[name](inp, target, reduction=reduction).numpy(), np.array(their), VALUE[DType.F32])


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_published_figure(kind: Any) -> None:
    """candle-nn's tests/loss.rs; the figure is PyTorch's."""
    inp = [
        [2.3611, -0.8813, -0.5006, -0.2178],
        [0.0419, 0.0763, -1.0457, -1.6692],
        [-1.0494, 0.8111, 1.5723, 1.2315],
        [1.3081, 0.6641, 1.1802, -0.2547],
        [0.5292, 0.7636, 0.3692, -0.8318],
    ]
    target = np.eye(4, dtype=np.float32)[[1, 1, 3, 0, 2]]
    found = loss.binary_cross_entropy_with_logit(kind.new(np.array(inp, np.float32)), kind.new(target))
    assert round(found.to_scalar(), 4) == 0.8224


def test_logits_of_any_size() -> None:
    """candle's formula gives inf or NaN for all but the first. Losses, and the gradient sigmoid(x) - t."""
    logits = np.array([3, 20, 1e4, -1e4, 3e38, np.inf, -np.inf, np.inf, -np.inf, 1e4, -1e4], np.float32)
    target = np.array([0, 0, 0, 1, 1, 0, 1, 1, 0, 0.5, 0.5], np.float32)
    want = [3.04858735, 20, 1e4, 1e4, 0, np.inf, np.inf, 0, 0, 5e3, 5e3]
    slopes = [0.95257413, 1, 1, -1, 0, 1, -1, 0, 0, 0.5, -0.5]
    variable = Var.new(logits)
    found = loss.binary_cross_entropy_with_logit(variable, Tensor.new(target), reduction="none")
    assert_near(found.numpy(), want, VALUE[DType.F32])
    assert_near(found.backward()[variable].numpy(), slopes, VALUE[DType.F32])


def test_kinks() -> None:
    """As PyTorch: the gradient of Huber's is the difference, at delta delta, beyond it delta with the sign."""
    values = np.array([0, -0.0, DELTA, -DELTA, 3, -3, np.inf, -np.inf, 1e30], np.float64)
    variable = Var.new(values)
    found = loss.huber(variable, Tensor.new(np.zeros(9)), DELTA, reduction="sum")
    assert_near(found.backward()[variable].numpy(), np.clip(values, -DELTA, DELTA), VALUE[DType.F64])
    # An infinite delta is half the squared error.
    found = loss.huber(Tensor.new(INP), Tensor.new(TARGET), float("inf"))
    assert_near(found.numpy(), ((INP - TARGET) ** 2).mean() / 2, VALUE[DType.F32])


@NAMES
def test_what_does_not_count_may_be_anything(name: str) -> None:
    inp, target = INP.copy(), TARGET.copy()
    inp[:, 1], target[0, 1], target[:, 3] = np.nan, np.inf, np.nan
    mask = np.array([1, 0, 1, 0, 1], np.uint8)
    keep = mask != 0
    for kind in (Tensor, LazyTensor):
        variable, others = Var.new(inp), Var.new(target)
        lift = (lambda x: x) if kind is Tensor else LazyTensor.from_tensor
        found = OURS[name](lift(variable), lift(others), mask=kind.new(mask))
        assert_near(found.numpy(), WANT[name](inp[:, keep], target[:, keep]).mean(), VALUE[DType.F32])
        grads = found.backward()
        for each in (variable, others):
            gradient = grads[each].numpy()
            assert not gradient[:, ~keep].any()
            assert (gradient[:, keep] != 0).all()


@NAMES
def test_nothing_counts(name: str) -> None:
    """The mean is 0, not NaN, and so is the gradient."""
    variable = Var.new(INP)
    found = OURS[name](variable, Tensor.new(TARGET), mask=Tensor.new(np.zeros((4, 1), np.float32)))
    assert found.to_scalar() == 0
    assert not found.backward()[variable].numpy().any()
    none = Tensor.new(np.zeros((0, 3), np.float32))
    assert OURS[name](none, none).to_scalar() == 0


def test_halves_whose_losses_are_beyond_their_range() -> None:
    """300² is no F16; the mean of 64 losses of which 63 are 0 is."""
    inp = Tensor.new(np.where(np.arange(64) == 0, 300.0, 0), dtype=DType.F16)
    assert loss.mse(inp, inp.zeros_like()).to_scalar() == 1406.0
    assert loss.huber(inp, inp.zeros_like(), 300.0).to_scalar() == 703.0


def test_refusals_when_recorded() -> None:
    inp = LazyTensor.new(INP)
    for name, function in OURS.items():
        with pytest.raises(
            mc.ShapeMismatchBinaryOpError, match=rf"^{name}: got shapes \(4, 5\) and \(5,\); takes equal"
        ):
            function(inp, inp.get(0))
        with pytest.raises(mc.DTypeMismatchError, match=rf"^{name}: dtypes differ, lhs f32, rhs u8"):
            function(inp, inp.to_dtype(DType.U8))
        with pytest.raises(mc.UnsupportedDTypeForOpError, match=rf"^{name}: got dtype i64; takes bf16"):
            function(inp.to_dtype(DType.I64), inp.to_dtype(DType.I64))
        with pytest.raises(mc.ArgumentTypeError, match=rf"^{name}: got target 1.0; takes a tensor$"):
            function(inp, 1.0)
        with pytest.raises(
            mc.ArgumentValueError, match=rf"^{name}: got reduction 'Mean'; takes 'mean', 'sum' or 'none'$"
        ):
            function(inp, inp, reduction="Mean")
        with pytest.raises(
            mc.ShapeMismatchBinaryOpError, match=rf"^{name}: got shapes \(4,\) and \(4, 5\); takes a mask"
        ):
            function(inp, inp, mask=LazyTensor.new(np.ones(4)))
    for bad in (0, -1.0, float("nan")):
        with pytest.raises(mc.ArgumentValueError, match=r"^huber: got delta .*; takes a positive number$"):
            loss.huber(inp, inp, bad)
    with pytest.raises(mc.ArgumentTypeError, match=r"^huber: got None for delta; takes a number$"):
        loss.huber(inp, inp, None)  # type: ignore[arg-type]
