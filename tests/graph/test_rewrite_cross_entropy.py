"""Cross entropy that is spelled out: ids that are no class, what is held, large heads, rows with infinities."""

from __future__ import annotations

from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.error import InvalidIndexError
from metal_candle.graph.operations.picked_head import PickedHeadLogSoftmax
from metal_candle.graph.rewrites import vocabulary_head
from metal_candle.nn import ops
from metal_candle.nn.linear import Linear

import numpy as np
import pytest
from rewriting import applied


def tensor(*shape: int, seed: int = 0, dtype: str = "f32") -> Tensor:
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)).to_dtype(dtype)


def lazy(*shape: int, seed: int = 0, dtype: str = "f32") -> LazyTensor:
    return LazyTensor.from_tensor(tensor(*shape, seed=seed, dtype=dtype))


def ids(count: int, below: int, seed: int = 5) -> LazyTensor:
    return LazyTensor.new(np.random.default_rng(seed).integers(0, below, count).astype(np.uint32))


def loss(logits: Any, target: Any) -> Any:
    """candle-nn's ``loss::cross_entropy``."""
    picked = ops.log_softmax(logits, 1).gather(target.unsqueeze(1), 1)
    return picked.sum_all().affine(-1.0 / target.dim(0), 0.0)


@pytest.fixture
def few_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of any size are worth fusing."""
    monkeypatch.setattr(vocabulary_head, "LEAST_LOGITS", 1)


def test_logits_that_are_held_are_not_recomputed() -> None:
    logits = lazy(5, 3) @ lazy(3, 7, seed=1)
    names, _ = applied(loss(logits, ids(5, 7)))
    assert names.count("matmul") == 1
    assert "picked_log_softmax" in names


def test_log_probabilities_with_another_user_stay() -> None:
    """Label smoothing needs all of them."""
    logits, target = lazy(5, 7), ids(5, 7)
    log_probabilities = logits.log_softmax(-1)
    smoothed = log_probabilities.gather(target.unsqueeze(1), 1) * 0.9 + log_probabilities.mean_keepdim(1) * 0.1
    del log_probabilities
    names, reason = applied(smoothed)
    assert "gather" in names
    assert "log_softmax [5, 7] stays: 2 operations use its value" in reason


@pytest.mark.parametrize("large", [False, True])
def test_ids_that_are_no_class(large: bool, few_logits: None) -> None:
    hidden, weight = lazy(3, 4), lazy(6, 4, seed=1)

    def picked(at: list[int]) -> LazyTensor:
        logits = hidden @ weight.t() if large else LazyTensor.from_tensor((hidden @ weight.t()).eval())
        target = LazyTensor.new(np.array(at, np.uint32)).unsqueeze(1)
        y: LazyTensor = logits.log_softmax(1).gather(target, 1)
        return y

    name = "picked_head_log_softmax" if large else "picked_log_softmax"
    assert name in applied(picked([0, 1, 2]))[0]
    found = picked([0, 2**32 - 1, 5]).numpy()
    with features.disabled("rewrite"):
        expected = picked([0, 2**32 - 1, 5]).numpy()
    assert found[1] == 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(InvalidIndexError, match="6"):
        picked([0, 6, 1]).eval()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_head_and_its_loss(dtype: str, rank: int, few_logits: None) -> None:
    shape = (6, 8) if rank == 2 else (2, 3, 8)
    target = ids(6, 11)

    def run(hidden: Tensor, weight: Tensor) -> list[np.ndarray[Any, Any]]:
        variables = Var.from_tensor(hidden), Var.from_tensor(weight)
        value = loss(Linear(variables[1]).forward(LazyTensor.from_tensor(variables[0])).reshape((6, 11)), target)
        grads = value.backward()
        return [x.to_dtype("f64").numpy() for x in (value.eval(), *[grads[variable] for variable in variables])]

    tensors = tensor(*shape, dtype=dtype), tensor(11, 8, seed=1, dtype=dtype)
    names, _ = applied(loss(Linear(tensors[1]).forward(LazyTensor.from_tensor(tensors[0])).reshape((6, 11)), target))
    assert "picked_head_log_softmax" in names
    assert not {"linear", "matmul", "log_softmax", "gather", "picked_log_softmax"} & set(names)
    found = run(*tensors)
    with features.disabled("rewrite"):
        expected = run(*[x.to_dtype("f64") for x in tensors])
    tolerance = {"f32": 1e-6, "bf16": 2e-2, "f16": 2e-3}[dtype]
    for got, want in zip(found, expected):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def test_a_head_whose_logits_are_held_is_not_computed_again(few_logits: None) -> None:
    logits = lazy(5, 3) @ lazy(3, 7, seed=1)
    names, reason = applied(loss(logits, ids(5, 7)))
    assert "picked_head_log_softmax" not in names
    assert "matmul [5, 7] stays: somebody holds its value" in reason


def test_no_gradient_through_what_is_detached(few_logits: None) -> None:
    hidden, weight = Var.from_tensor(tensor(5, 3)), Var.from_tensor(tensor(7, 3, seed=1))
    logits = LazyTensor.from_tensor(hidden).detach() @ LazyTensor.from_tensor(weight).t()
    grads = loss(logits, ids(5, 7)).backward()
    assert grads.get(hidden) is None
    assert grads.get(weight) is not None


def test_rows_with_infinities_and_nan() -> None:
    rows = np.array([[-np.inf, 0, 1], [np.inf, 0, 1], [np.nan, 0, 1], [-np.inf] * 3, [3e38, -3e38, 0]], np.float32)
    target = LazyTensor.new(np.array([0, 1, 1, 2, 0], np.uint32)).unsqueeze(1)
    found = LazyTensor.new(rows).log_softmax(1).gather(target, 1).numpy()
    with features.disabled("rewrite"):
        expected = LazyTensor.new(rows).log_softmax(1).gather(target, 1).numpy()
    np.testing.assert_array_equal(found, expected)


def test_the_record_refuses_what_does_not_fit() -> None:
    hidden, weight, target = lazy(5, 3)._node.meta, lazy(7, 3)._node.meta, ids(5, 7)._node.meta
    assert PickedHeadLogSoftmax().infer(hidden, weight, target).shape == (5,)
    with pytest.raises(ValueError, match="one for each of 5 rows"):
        PickedHeadLogSoftmax().infer(hidden, weight, ids(4, 7)._node.meta)
    with pytest.raises(ValueError, match=r"weight \(v, h\)"):
        PickedHeadLogSoftmax().infer(hidden, lazy(3, 7)._node.meta, target)


@pytest.mark.usefixtures("few_logits")
def test_a_square_head() -> None:
    """Its columns become rows, though either way would fit."""
    hidden, columns, target = lazy(6, 7), lazy(7, 7, seed=1), ids(6, 7)

    def picked() -> LazyTensor:
        return (hidden @ columns).log_softmax(1).gather(target.unsqueeze(1), 1)

    names, _ = applied(picked())
    assert "picked_head_log_softmax" in names
    with features.disabled("rewrite"):
        want = picked().numpy()
    np.testing.assert_allclose(picked().numpy(), want, rtol=0, atol=1e-5)
