"""Losses and their gradients against ``torch.nn.functional``, over keywords, dtypes and logits of any size."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.nn import loss

import numpy as np
import pytest
from tolerance import GRADIENT, VALUE, assert_near

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((7, 5)) * 3).astype(np.float32)
# Enough for the blocks of rows that large logits are taken in.
LARGE = (RNG.standard_normal((7, 2000)) * 3).astype(np.float32)
TARGETS = np.array([1, -100, 4, 0, -100, 2, 3])
DTYPES = {DType.F32: torch.float32, DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F64: torch.float64}


def agree(ours: Any, theirs: Any, arrays: tuple[Any, ...], dtype: DType = DType.F32) -> None:
    """Values and gradients of both, for float arrays of ``dtype``, the gradient of the sum of the result.

    torch computes halves in float32: its sums of smoothed losses in float16 are infinite from 65504 on.
    """
    variables = [Var.new(array, dtype=dtype) for array in arrays]
    wide = torch.float64 if dtype is DType.F64 else torch.float32
    tensors = [torch.tensor(array, dtype=DTYPES[dtype]).to(wide).requires_grad_() for array in arrays]
    found, want = ours(*map(LazyTensor.from_tensor, variables)), theirs(*tensors)
    assert found.dtype is dtype
    assert_near(found.to_dtype(DType.F64).numpy(), want.detach().double().numpy(), VALUE[dtype])
    want.sum().backward()
    grads = found.backward()
    near = GRADIENT.get(dtype, VALUE[dtype])
    for variable, tensor in zip(variables, tensors):
        assert_near(grads[variable].to_dtype(DType.F64).numpy(), tensor.grad.double().numpy(), near)


@REDUCTIONS
@pytest.mark.parametrize("ignore_index", [-100, 2, None])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("logits", [LOGITS, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy(reduction: Any, ignore_index: int | None, smoothing: float, logits: Any, dtype: DType) -> None:
    target = TARGETS if ignore_index == -100 else np.maximum(TARGETS, 0)
    keywords = {"reduction": reduction, "label_smoothing": smoothing}
    agree(
        lambda x: loss.cross_entropy(x, x._lift(Tensor.new(target)), ignore_index=ignore_index, **keywords),
        lambda x: F.cross_entropy(
            x, torch.tensor(target), ignore_index=-1 if ignore_index is None else ignore_index, **keywords
        ),
        (logits,),
        dtype,
    )


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=str)
def test_linear_cross_entropy(reduction: Any, smoothing: float, dtype: DType) -> None:
    hidden, weight = RNG.standard_normal((7, 6)), RNG.standard_normal((11, 6))
    keywords: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": -100}
    agree(
        lambda h, w: loss.linear_cross_entropy(h, w, Tensor.new(TARGETS), **keywords),
        lambda h, w: F.cross_entropy(F.linear(h, w), torch.tensor(TARGETS), **keywords),
        (hidden, weight),
        dtype,
    )


@pytest.mark.parametrize("size", [(6, 5), (6, 3000)], ids=["small", "large"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_logits(size: tuple[int, int], smoothing: float) -> None:
    logits = np.full(size, -1e4, np.float32)
    logits[0, 1], logits[1, 2], logits[2], logits[3, :2] = 1e4, 1e4, 1e4, (1e4, 9999.5)
    logits[4], logits[5, 0] = RNG.standard_normal(size[1]) + 1e4, -np.inf
    target = np.array([1, 1, 3, 1, 4, 0 if smoothing == 0 else 1])
    agree(
        lambda x: loss.cross_entropy(x, Tensor.new(target), reduction="none", label_smoothing=smoothing),
        lambda x: F.cross_entropy(x, torch.tensor(target), reduction="none", label_smoothing=smoothing),
        (logits,),
    )


@REDUCTIONS
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nll(reduction: Any, ignore_index: int, dtype: DType) -> None:
    target = TARGETS if ignore_index == -100 else np.maximum(TARGETS, 0)
    keywords: dict[str, Any] = {"reduction": reduction, "ignore_index": ignore_index}
    agree(
        lambda x: loss.nll(x, Tensor.new(target), **keywords),
        lambda x: F.nll_loss(x, torch.tensor(target), **keywords),
        (LOGITS,),
        dtype,
    )


@REDUCTIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elementwise(reduction: Any, dtype: DType) -> None:
    inp, target = RNG.standard_normal((6, 5)) * 2, RNG.uniform(0, 1, (6, 5))
    inp[0, :3] = target[0, :3] + np.array([0, 1.5, -1.5])  # where Huber's changes over
    agree(
        lambda x, t: loss.mse(x, t, reduction=reduction),
        lambda x, t: F.mse_loss(x, t, reduction=reduction),
        (inp, target),
        dtype,
    )
    agree(
        lambda x, t: loss.huber(x, t, 1.5, reduction=reduction),
        lambda x, t: F.huber_loss(x, t, delta=1.5, reduction=reduction),
        (inp, target),
        dtype,
    )
    agree(
        lambda x, t: loss.binary_cross_entropy_with_logit(x, t, reduction=reduction),
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction=reduction),
        (inp, target),
        dtype,
    )


def test_binary_cross_entropy_of_large_logits() -> None:
    logits = np.array([1e4, -1e4, 1e4, -1e4, 30, -30, 80], np.float32)
    target = np.array([0, 1, 1, 0, 0, 0, 1], np.float32)
    agree(
        lambda x: loss.binary_cross_entropy_with_logit(x, Tensor.new(target), reduction="none"),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(target), reduction="none"),
        (logits,),
    )


def test_torch_gives_nan_where_nothing_counts() -> None:
    """The one difference that is meant."""
    target = np.full(7, -100)
    assert F.cross_entropy(torch.tensor(LOGITS), torch.tensor(target)).isnan()
    assert loss.cross_entropy(Tensor.new(LOGITS), Tensor.new(target), ignore_index=-100).to_scalar() == 0
