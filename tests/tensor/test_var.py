"""``Var`` is a cell: what shares it sees later values, what was recorded keeps its own."""

from __future__ import annotations

from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.graph import ComputationGraph

import numpy as np
import pytest


def test_set_is_seen_by_everything_that_shares_the_cell() -> None:
    w = Var([1.0, 2.0])
    shared, same, alias, copy = w.as_tensor(), Var.from_tensor(w), Var(w), Var.from_tensor(w.detach())
    w.set(Tensor([5.0, 6.0]))
    assert shared.to_vec1() == same.to_vec1() == alias.to_vec1() == [5.0, 6.0]
    assert copy.to_vec1() == [1.0, 2.0]
    same.set(Tensor([7.0, 8.0]))
    assert w.to_vec1() == [7.0, 8.0]
    assert shared.is_variable()
    assert shared.track_op()


def test_a_gradient_of_one_is_a_gradient_of_all_that_share() -> None:
    w = Var([1.0, 2.0])
    grads = w.as_tensor().sqr().sum_all().backward()
    assert grads[w].to_vec1() == grads[w.as_tensor()].to_vec1() == [2.0, 4.0]
    assert len(grads) == 1
    w.set(Tensor([9.0, 9.0]))
    assert grads[w].to_vec1() == [2.0, 4.0]


def test_recorded_graphs_keep_the_value_of_recording_time() -> None:
    w = Var([1.0, 2.0])
    lazy = LazyTensor.from_tensor(w)
    doubled = lazy * 2.0
    w.set(Tensor([10.0, 10.0]))
    assert doubled.eval().to_vec1() == [2.0, 4.0]
    assert (lazy + 0.0).eval().to_vec1() == [1.0, 2.0]
    assert (LazyTensor.from_tensor(w) * 2.0).eval().to_vec1() == [20.0, 20.0]
    both = (doubled * LazyTensor.from_tensor(w)).sum_all()
    assert both.backward()[w].to_vec1() == [2 * 10 + 2 * 1, 2 * 10 + 2 * 2]


def test_what_is_computed_from_a_var_is_a_plain_tensor() -> None:
    w = Var([1.0])
    for result in (w + 1.0, w.exp(), w.detach(), w[0], Tensor.cat([w, w], 0), w.as_detached_tensor()):
        assert not isinstance(result, Var)
        assert not result.is_variable()


def test_set_refuses_another_shape_or_dtype() -> None:
    w = Var([1.0, 2.0])
    with pytest.raises(ValueError, match=r"set: got shapes \(2,\) and \(3,\); takes the variable's shape"):
        w.set(Tensor([1.0, 2.0, 3.0]))
    with pytest.raises(TypeError, match="set: dtypes differ, lhs f32, rhs f16; convert one with to_dtype"):
        w.set(Tensor([1.0, 2.0], dtype="f16"))
    with pytest.raises(RuntimeError, match=r"set: got a list; takes a tensor, Tensor\(...\) makes one"):
        w.set([1.0, 2.0])  # type: ignore[arg-type]
    assert w.to_vec1() == [1.0, 2.0]


def test_set_takes_a_lazy_tensor_but_nothing_that_shares_the_storage() -> None:
    w = Var([[1.0, 2.0], [3.0, 4.0]])
    w.set(LazyTensor.from_tensor(w) * 3.0)
    assert w.to_vec2() == [[3.0, 6.0], [9.0, 12.0]]
    for view in (w, w.as_tensor(), w.t(), w.detach(), w.t().t()):
        with pytest.raises(RuntimeError, match="set: got a tensor that shares the variable's storage; takes copy"):
            w.set(view)
    w.set(w.t() + 0.0)
    assert w.to_vec2() == [[3.0, 9.0], [6.0, 12.0]]


def test_setting_in_a_loop_keeps_no_history() -> None:
    w = Var([1.0])
    for _ in range(50):
        w.set(w - w.sqr().backward()[w] * 0.1)
    assert len(ComputationGraph(w)) == 1
    assert w.to_vec1() == [pytest.approx(0.8**50, rel=1e-5)]


def test_constructors() -> None:
    for w in (Var.zeros((2,)), Var.ones((2,)), Var.randn(0.0, 1.0, (2,)), Var.rand(0.0, 1.0, 2), Var.new([1.0, 2.0])):
        assert type(w) is Var
        assert w.is_variable()
        w.set(Tensor([3.0, 4.0]))
        assert w.to_vec1() == [3.0, 4.0]


def test_an_integer_variable_has_no_gradient() -> None:
    w = Var([1, 2])
    assert w.dtype is DType.I64
    assert not w.track_op()
    assert len(w.to_dtype("f32").sum_all().backward()) == 0


def test_variables_of_lazy_start() -> None:
    w = Var.from_tensor(LazyTensor.new([1.0]).exp())
    np.testing.assert_allclose(w.numpy(), [np.e], rtol=1e-6)
