"""Reverse mode: sharing, broadcasting, ends of paths, kinks, operations with several results (``Pick``, ``Vjp``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.graph.differentiate import gradients
from metal_candle.graph.node import GraphNode, record
from metal_candle.graph.operation import REGISTRY, Arrays, Gradients, Meta, Metas, Operation
from metal_candle.graph.operations.structure import Pick, Vjp

import mlx.core as mx
import numpy as np
import pytest

Lift = Callable[[Any], Any]
BOTH = pytest.mark.parametrize("lift", [lambda x: x, LazyTensor.from_tensor], ids=["eager", "lazy"])


@BOTH
def test_shared_subgraphs_add_up(lift: Lift) -> None:
    w = Var([1.0, 2.0])
    x = lift(w)
    shared = x * x
    loss = (shared * shared + shared + x).sum_all()  # w^4 + w^2 + w
    assert loss.backward()[w].to_vec1() == [4 + 2 + 1, 32 + 4 + 1]


@BOTH
def test_a_value_used_twice_by_one_operation(lift: Lift) -> None:
    w = Var([[1.0, 2.0], [3.0, 4.0]])
    x = lift(w)
    np.testing.assert_allclose(x.mul(x).backward()[w].numpy(), 2 * w.numpy())
    ones = np.ones((2, 2))
    np.testing.assert_allclose(x.matmul(x).backward()[w].numpy(), ones @ w.numpy().T + w.numpy().T @ ones)


@BOTH
def test_broadcasting_is_summed_back(lift: Lift) -> None:
    a, b, c = Var(np.ones((2, 1, 3), np.float32)), Var(np.full((4, 1), 2, np.float32)), Var(3.0)
    grads = (lift(a) * lift(b) * lift(c)).backward()
    assert np.all(grads[a].numpy() == 4 * 2 * 3)
    assert np.all(grads[b].numpy() == 2 * 3 * 3)
    assert grads[c].to_scalar() == 2 * 4 * 3 * 2
    assert [grads[v].shape == v.shape for v in (a, b, c)] == [True] * 3


@BOTH
def test_batched_products_share_a_matrix(lift: Lift) -> None:
    w, x = Var(np.arange(6, dtype=np.float32).reshape(3, 2)), np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    gradient = lift(Tensor(x)).broadcast_matmul(lift(w)).backward()[w]
    np.testing.assert_allclose(gradient.numpy(), x.reshape(4, 3).T @ np.ones((4, 2)))


@BOTH
def test_a_detached_branch_gives_nothing(lift: Lift) -> None:
    w = Var([1.0, 2.0])
    x = lift(w)
    grads = (x * x.detach()).backward()
    assert grads[w].to_vec1() == [1.0, 2.0]
    only = x.detach().sqr().sum_all()
    assert not only.track_op()
    assert only.backward().get(w) is None
    assert w.as_detached_tensor().track_op() is False


@BOTH
def test_no_path_is_none_and_explained(lift: Lift) -> None:
    w, other = Var([1.0, 2.0]), Var([3.0, 4.0])
    grads = (lift(w) * 2.0).sum_all().backward()
    assert grads.get(other) is None
    assert other not in grads
    assert len(grads) == 1
    assert grads.explain(w) == "it has a gradient"
    assert grads.explain(other) == "the loss does not depend on this variable"
    with pytest.raises(KeyError, match="grads: no gradient for this tensor: the loss does not depend on this variable"):
        _ = grads[other]
    plain = Tensor([1.0])
    assert grads.get(plain) is None
    assert grads.explain(plain) == "the tensor is no variable; gradients are kept for Var only"


def test_explain_says_where_a_lazy_path_is_cut() -> None:
    w, other = Var([1.0, 2.0]), Var([3.0, 4.0])
    loss = (LazyTensor.from_tensor(w).exp().detach() * LazyTensor.from_tensor(other)).sum_all()
    grads = loss.backward()
    assert grads.explain(w) == "the path is cut at detach [2], which passes no gradient on"
    loss = LazyTensor.from_tensor(w).gt(1.5).to_dtype("f32").mul(LazyTensor.from_tensor(other)).sum_all()
    assert loss.backward().explain(w) == "the path is cut at gt [2], which passes no gradient on"


def test_explain_says_where_an_eager_path_may_be_cut() -> None:
    """Eager operations that pass no gradient on let their inputs go, and remember only that they cut a path."""
    w, other = Var([1.0, 2.0]), Var([3.0, 4.0])
    cut = w.exp().detach().mul_scalar(2.0)
    assert cut._node.inputs == ()
    grads = (cut * other).sum_all().backward()
    text = "no path leads to it; one is cut at detach [2], which passes no gradient on"
    assert grads.explain(w) == text


@BOTH
def test_integers_end_a_gradient(lift: Lift) -> None:
    w = Var([1.0, 2.0])
    back = lift(w).to_dtype("u8").to_dtype("f32")
    assert not back.track_op()
    assert len((back * 2.0).backward()) == 0


@BOTH
def test_a_product_with_the_number_0_ends_the_path_one_with_zeros_does_not(lift: Lift) -> None:
    """As in candle, whose affine by 0 leaves no entry: an optimizer leaves the variable alone."""
    w = Var([1.0, 2.0])
    assert (lift(w) * 0.0).backward().get(w) is None
    assert (lift(w) * lift(Tensor([0.0, 0.0]))).backward()[w].to_vec1() == [0.0, 0.0]


@BOTH
def test_a_tensor_of_several_elements_is_differentiated_as_its_sum(lift: Lift) -> None:
    w = Var([[1.0, 2.0]])
    assert (lift(w) * 3.0).backward()[w].to_vec2() == [[3.0, 3.0]]
    assert lift(w).backward()[w].to_vec2() == [[1.0, 1.0]]


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F64], ids=str)
def test_gradients_have_the_variable_s_dtype(dtype: DType) -> None:
    w = Var([1.0, 2.0], dtype=dtype)
    gradient = w.sqr().sum_all().backward()[w]
    assert gradient.dtype is dtype
    assert gradient.tolist() == [2.0, 4.0]
    mixed = w.to_dtype("f32").sqr().sum_all().backward()[w]
    assert mixed.dtype is dtype


@BOTH
def test_kinks_are_candle_s(lift: Lift) -> None:
    """``abs`` and ``relu`` at 0 have slope 1; ties share a binary gradient, and each gets a reduction's in full."""
    w = Var([-1.0, 0.0, 2.0])
    x = lift(w)
    assert x.abs().backward()[w].to_vec1() == [-1.0, 1.0, 1.0]
    assert x.relu().backward()[w].to_vec1() == [0.0, 1.0, 1.0]
    a, b = Var([1.0, 2.0, 3.0]), Var([1.0, 3.0, 2.0])
    for name, left in [("maximum", [0.5, 0.0, 1.0]), ("minimum", [0.5, 1.0, 0.0])]:
        grads = getattr(lift(a), name)(lift(b)).backward()
        assert grads[a].to_vec1() == left
        assert grads[b].to_vec1() == [1 - share for share in left]
    ties = Var([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert lift(ties).max(1).backward()[ties].to_vec2() == [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert lift(ties).min_keepdim(0).backward()[ties].to_vec2() == [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    assert lift(ties).max_all().backward()[ties].to_vec2() == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


@BOTH
def test_a_gradient_is_taken_of_a_part(lift: Lift) -> None:
    w = Var(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert lift(w)[1, ::2].sum_all().backward()[w].to_vec2() == [[0, 0, 0], [1, 0, 1]]
    joined = type(lift(w)).cat([lift(w), lift(w) * 2.0], 0)
    assert np.all(joined.backward()[w].numpy() == 3)


def test_the_store_can_be_changed() -> None:
    w = Var([1.0, 2.0])
    grads = w.sqr().sum_all().backward()
    earlier = grads.insert(w, grads[w] * 0.5)
    assert earlier is not None
    assert earlier.to_vec1() == [2.0, 4.0]
    assert grads[w].to_vec1() == [1.0, 2.0]
    assert grads.get_ids() == [w.id()] == [w.as_tensor().id()]
    assert grads.get_id(w.id()) is not None
    w.set(Tensor([5.0, 6.0]))
    assert grads.get_ids() == [w.id()], "a variable's id does not change with its value"
    removed = grads.remove(w)
    assert removed is not None
    assert removed.to_vec1() == [1.0, 2.0]
    assert grads.get(w) is None
    assert grads.remove(w) is None
    other = Tensor([1.0])
    assert grads.insert(other, Tensor([3.0])) is None
    assert grads[other].to_vec1() == [3.0]
    with pytest.raises(ValueError, match=r"insert: got shapes \(1,\) and \(2,\); takes a gradient of the"):
        grads.insert(other, w)
    with pytest.raises(TypeError, match="insert: dtypes differ, lhs f32, rhs i64"):
        grads.insert(other, Tensor([1]))


def test_stores_add_up() -> None:
    w, v = Var([1.0, 2.0]), Var([1.0])
    grads = w.sqr().backward()
    grads.extend((w * 3.0).sum_all().backward())
    grads.extend(v.sqr().backward())
    assert grads[w].to_vec1() == [5.0, 7.0]
    assert grads[v].to_vec1() == [2.0]


def test_only_paths_to_variables_are_walked() -> None:
    w = Var([[1.0]])
    frozen = LazyTensor.new([[2.0]]).exp().matmul(LazyTensor.new([[3.0]]))
    loss = (LazyTensor.from_tensor(w) * frozen).sum_all()
    (gradient,) = gradients(loss._node).values()
    recorded = [node for node in _reachable(gradient) if isinstance(node.operation, Vjp)]
    assert sorted(node.operation.operation.name() for node in recorded) == ["mul", "sum"]


def _reachable(node: GraphNode) -> list[GraphNode]:
    from metal_candle.graph.node import topological_order

    return topological_order([node])


@pytest.fixture
def halves() -> Any:
    """A record with two results, x/2 and x/4, registered for a test."""

    class Halves(Operation):
        """Two results."""

        def infer(self, x: Meta) -> Metas:
            return x, x

        def lower(self, x: mx.array) -> Arrays:
            return x / 2, x / 4

        def vjp(self, cotangent: Any, inputs: Any, output: Any, needs: Any) -> Gradients:
            assert isinstance(output, tuple)
            first, second = cotangent
            total = mx.zeros_like(inputs[0])
            if first is not None:
                total = total + first / 2
            if second is not None:
                total = total + second / 4
            return (total,)

    yield Halves()
    del REGISTRY["halves"]
    del Operation.Halves


@BOTH
def test_operations_with_several_results(lift: Lift, halves: Operation) -> None:
    w = Var([4.0, 8.0])
    x = lift(w)
    node = record(halves, (x._node,))
    first, second = (x._wrap(record(Pick(i), (node,))) for i in (0, 1))
    assert first.tolist() == [2.0, 4.0]
    assert second.tolist() == [1.0, 2.0]
    assert second.backward()[w].to_vec1() == [0.25, 0.25]
    assert (first * 2.0 + second + first).backward()[w].to_vec1() == [1.75, 1.75]


def test_several_results_are_computed_once_eagerly(halves: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    lower = type(halves).lower
    monkeypatch.setattr(type(halves), "lower", lambda self, x: calls.append(1) or lower(self, x))
    node = record(halves, (Tensor([4.0])._node,))
    values = [Tensor._from_node(record(Pick(i), (node,))).to_vec1() for i in (0, 1)]
    assert values == [[2.0], [1.0]]
    assert calls == [1]


def test_a_record_without_derivative_is_named() -> None:
    class Opaque(Operation):
        """Something MLX cannot differentiate."""

        def infer(self, x: Meta) -> Meta:
            return x

        def lower(self, x: mx.array) -> mx.array:
            @mx.custom_function
            def function(x: mx.array) -> mx.array:
                return x * 2

            @function.vjp
            def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
                raise ValueError("[Opaque] Not implemented for this")

            return function(x)

    try:
        w = Var([1.0])
        with pytest.raises(NotImplementedError, match=r"backward: opaque has no gradient; detach\(\) its input"):
            w._record(Opaque()).backward()
    finally:
        del REGISTRY["opaque"]
        del Operation.Opaque


def test_the_store_refuses_what_is_no_tensor() -> None:
    w = Var([1.0])
    grads = w.sqr().backward()
    assert list(grads) == [w.id()]
    assert repr(grads) == "GradStore of 1 gradients"
    for call in (grads.get, grads.__getitem__, grads.explain, grads.remove, lambda x: x in grads):
        with pytest.raises(mc.Error, match="got str; takes a tensor"):
            call("a")  # type: ignore[operator]
    with pytest.raises(mc.Error, match="insert: got int; takes a tensor"):
        grads.insert(w, 2)  # type: ignore[arg-type]
    with pytest.raises(mc.Error, match=r"insert_id: got str; takes a tensor's id\(\)"):
        grads.insert_id("a", w)  # type: ignore[arg-type]
    with pytest.raises(mc.Error, match="extend: got dict; takes a GradStore"):
        grads.extend({})  # type: ignore[arg-type]
