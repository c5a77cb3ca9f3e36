"""``HeadCrossEntropy``: the loss of hidden states without all logits at once."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.graph import Operation

import numpy as np
import pytest
from tolerance import GRADIENT, VALUE, assert_near

RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((37, 24)).astype(np.float32)
WEIGHT = RNG.standard_normal((101, 24)).astype(np.float32)
TARGETS = RNG.integers(0, 101, 37).astype(np.int32)


def reference(hidden: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Losses, the gradient of the logits for losses weighed 1, 2, 3 …, and the weights, in float64."""
    logits = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = np.arange(len(hidden))
    losses = -np.log(probabilities[rows, TARGETS])
    probabilities[rows, TARGETS] -= 1
    weights = np.arange(1, len(hidden) + 1, dtype=np.float64)
    return losses, probabilities * weights[:, None], weights


def loss(hidden: Any, weight: Any) -> Any:
    return hidden._record(Operation.HeadCrossEntropy(), hidden._lift(weight), hidden._lift(Tensor(TARGETS)))


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_losses_and_gradients(kind: Any) -> None:
    hidden, weight = Var(HIDDEN), Var(WEIGHT)
    lift = (lambda x: x) if kind is Tensor else LazyTensor.from_tensor
    losses = loss(lift(hidden), weight)
    assert (tuple(losses.shape), losses.dtype) == ((37,), DType.F32)
    wanted, gradient, weights = reference(HIDDEN, WEIGHT)
    grads = (losses * lift(Tensor(weights.astype(np.float32)))).sum_all().backward()
    assert_near(losses.numpy(), wanted, VALUE[DType.F32])
    assert_near(grads[hidden].numpy(), gradient @ WEIGHT, GRADIENT[DType.F32]._replace(absolute=1e-3))
    assert_near(grads[weight].numpy(), gradient.T @ HIDDEN, GRADIENT[DType.F32]._replace(absolute=1e-3))


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden = Var(HIDDEN)
    grads = loss(LazyTensor.from_tensor(hidden), Tensor(WEIGHT)).sum_all().backward()
    assert len(grads) == 1
    assert grads.get(hidden) is not None


def test_halves_give_losses_in_float32() -> None:
    hidden, weight = Tensor(HIDDEN).to_dtype("bf16"), Tensor(WEIGHT).to_dtype("bf16")
    losses = loss(hidden, weight)
    assert losses.dtype is DType.F32
    wanted, _, _ = reference(hidden.numpy(), weight.numpy())
    # The logits themselves are about 5 and rounded to 8 bits where they are products of bfloat16.
    assert_near(losses.numpy(), wanted, VALUE[DType.BF16]._replace(absolute=0.1))


def test_refusals_when_recorded() -> None:
    hidden, weight = LazyTensor.new(HIDDEN), LazyTensor.new(WEIGHT)
    record = Operation.HeadCrossEntropy()
    with pytest.raises(ValueError, match=r"linear_cross_entropy: got shapes \(37, 24\) and \(24, 101\); takes hidden"):
        hidden._record(record, weight.t(), LazyTensor.new(TARGETS))
    with pytest.raises(ValueError, match=r"got targets \(3,\); takes one for each of 37 rows"):
        hidden._record(record, weight, LazyTensor.new([1, 2, 3]))
    with pytest.raises(TypeError, match="ids of u8, u32, i32 or i64"):
        hidden._record(record, weight, LazyTensor.new(TARGETS.astype(np.float32)))
