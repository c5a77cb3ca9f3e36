"""What candle's storage gives, on MLX's values: views see writes, through each other and through variables."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

VIEWS: dict[str, Callable[[Any], Any]] = {
    "narrow": lambda t: t.narrow(1, 1, 2),
    "t": lambda t: t.t(),
    "permute": lambda t: t.permute((1, 0)),
    "row": lambda t: t[1],
    "get": lambda t: t.get(0),
    "step": lambda t: t[::-1, ::2],
    "reshape": lambda t: t.reshape((3, 2)),
    "flatten": lambda t: t.flatten_all(),
    "unsqueeze": lambda t: t.unsqueeze(0),
    "squeeze": lambda t: t.unsqueeze(2).squeeze(2),
    "chunk": lambda t: t.chunk(2, 1)[1],
    "detach": lambda t: t.detach(),
    "contiguous": lambda t: t.contiguous(),
    "of a view": lambda t: t.t().narrow(0, 1, 2).unsqueeze(1)[..., 0],
}


def grid() -> np.ndarray:
    return np.arange(6, dtype=np.float32).reshape(2, 3)


def as_numpy(view: Callable[[Any], Any]) -> np.ndarray:
    """The places of ``grid`` that a view shows."""
    return view(Tensor(grid())).numpy().astype(int)


@pytest.mark.parametrize("start", [Tensor, Var], ids=["tensor", "var"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_write_through_a_view_changes_the_parent_and_other_views(name: str, start: type[Tensor]) -> None:
    view, base = VIEWS[name], start(grid())
    before, other = view(base), base.t()
    before.const_set(-1.0)
    want = grid()
    want.reshape(-1)[as_numpy(view).reshape(-1)] = -1
    np.testing.assert_array_equal(base.numpy(), want)
    np.testing.assert_array_equal(other.numpy(), want.T)
    np.testing.assert_array_equal(before.numpy(), np.full(before.shape, -1))


@pytest.mark.parametrize("start", [Tensor, Var], ids=["tensor", "var"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_sees_what_is_written_to_its_parent(name: str, start: type[Tensor]) -> None:
    view, base = VIEWS[name], start(grid())
    before = view(base)
    base.slice_set(Tensor([[7.0, 8.0, 9.0]]), 0, 1)
    want = grid()
    want[1] = [7, 8, 9]
    np.testing.assert_array_equal(base.numpy(), want)
    np.testing.assert_array_equal(before.numpy(), want.reshape(-1)[as_numpy(view)])


@pytest.mark.parametrize("name", ["copy", "result", "reshape of a turned one", "contiguous of a turned one"])
def test_what_has_storage_of_its_own_is_left_alone(name: str) -> None:
    base = Tensor(grid())
    other = {
        "copy": lambda: base.copy(),
        "result": lambda: base * 1.0,
        "reshape of a turned one": lambda: base.t().reshape((6,)),
        "contiguous of a turned one": lambda: base.t().contiguous(),
    }[name]()
    before = other.numpy()
    base.zero_set()
    np.testing.assert_array_equal(other.numpy(), before)
    other.one_set()
    np.testing.assert_array_equal(base.numpy(), np.zeros((2, 3)))


def test_views_of_a_variable_see_set_and_keep_their_gradient() -> None:
    w = Var(grid())
    turned, detached, shared = w.t(), w.as_detached_tensor(), w.as_tensor()
    w.set(Tensor(grid() * 10))
    np.testing.assert_array_equal(turned.numpy(), grid().T * 10)
    np.testing.assert_array_equal(detached.numpy(), grid() * 10)
    np.testing.assert_array_equal(shared.numpy(), grid() * 10)
    assert turned.track_op()
    assert not detached.track_op()
    np.testing.assert_array_equal((turned * turned).backward()[w].numpy(), grid() * 20)


def test_what_was_recorded_reads_the_value_of_its_time() -> None:
    w = Var([1.0, 2.0])
    view = w.narrow(0, 1, 1)
    recorded = LazyTensor.from_tensor(view) * 3.0
    loss = (view * view).sum_all()
    w.set(Tensor([10.0, 20.0]))
    assert recorded.eval().to_vec1() == [6.0]
    assert view.to_vec1() == [20.0]
    assert loss.backward()[w].to_vec1() == [0.0, 4.0]


def test_a_compiled_function_reads_a_variable_through_a_view_from_outside() -> None:
    w = Var(grid())
    turned = w.t()
    f = mc.compile(lambda x: x.matmul(turned))
    x = Tensor([[1.0, 1.0, 1.0]])
    assert f(x).to_vec2() == [[3.0, 12.0]]
    w.set(Tensor(grid() * 2))
    assert f(x).to_vec2() == [[6.0, 24.0]]
    assert f.traces == 1


def test_inside_a_compiled_function_only_what_it_made_can_be_written() -> None:
    outside = Tensor([1.0, 2.0])

    def inside(x: Tensor) -> Tensor:
        y = x * 2.0
        y.narrow(0, 0, 1).zero_set()
        return y

    assert mc.compile(inside)(outside).to_vec1() == [0.0, 4.0]
    assert outside.to_vec1() == [1.0, 2.0]
    with pytest.raises(mc.Error, match="in place: a function that compile is tracing changes a tensor from outside"):
        mc.compile(lambda x: (outside.zero_set(), x)[1])(Tensor([1.0]))
    assert outside.to_vec1() == [1.0, 2.0]


def test_gradients_through_what_was_written() -> None:
    w, x = Var([1.0, 2.0, 3.0]), Var([10.0, 20.0])
    y = w * 2.0
    y[1:].slice_set(x * 1.0, 0, 0)
    assert y.to_vec1() == [2.0, 10.0, 20.0]
    grads = (y * y).sum_all().backward()
    assert grads[w].to_vec1() == [8.0, 0.0, 0.0]
    assert grads[x].to_vec1() == [20.0, 40.0]
    y.zero_set()
    assert len((y * 1.0).sum_all().backward()) == 0


def test_in_place_methods() -> None:
    t = Tensor(grid())
    assert t.const_set(2.0) is None
    assert t.to_vec2() == [[2.0] * 3] * 2
    t.const_set(Tensor(5.0))
    assert t.to_vec2() == [[5.0] * 3] * 2
    t.one_set()
    assert t.to_vec2() == [[1.0] * 3] * 2
    t.scatter_set(Tensor([[2], [0]]), Tensor([[7.0], [8.0]]), 1)
    assert t.to_vec2() == [[1.0, 1.0, 7.0], [8.0, 1.0, 1.0]]
    t.scatter_add_set(Tensor([[2, 2], [0, 1]]), Tensor([[1.0, 1.0], [1.0, 1.0]]), 1)
    assert t.to_vec2() == [[1.0, 1.0, 9.0], [9.0, 2.0, 1.0]]
    t.zero_set()
    assert t.to_vec2() == [[0.0] * 3] * 2
    ids = Tensor([1, 2, 3])
    ids.const_set(9)
    assert ids.to_vec1() == [9, 9, 9]


def test_in_place_methods_refuse() -> None:
    t = Tensor(grid())
    with pytest.raises(mc.Error, match="const_set: got shape \\[2\\], f32; takes a number or a scalar of f32"):
        t.const_set(Tensor([1.0, 2.0]))
    with pytest.raises(mc.Error, match="const_set: got shape \\[\\], i64; takes a number or a scalar of f32"):
        t.const_set(Tensor(1))
    with pytest.raises(mc.Error, match="takes an integer"):
        Tensor([1, 2]).const_set(1.5)
    with pytest.raises(TypeError, match="dtypes differ, lhs f32, rhs i64"):
        t.slice_set(Tensor([[1, 2, 3]]), 0, 0)
    with pytest.raises(mc.Error, match="in place: the tensor is a view of shape \\[4, 2, 3\\] that repeats elements"):
        t.broadcast_left(4).zero_set()
    with pytest.raises(mc.Error, match="setitem: got an index that copies"):
        t[Tensor([0, 1])] = 1.0
    assert t.to_vec2() == grid().tolist()
    lazy = LazyTensor.from_tensor(t)
    assert not any(hasattr(lazy, name) for name in ("const_set", "zero_set", "slice_set", "inplace_op1"))
    with pytest.raises(TypeError):
        lazy[0] = 1.0  # type: ignore[index]


def test_setitem_writes_numbers_and_broadcasts_tensors() -> None:
    t = Tensor(grid())
    t[0] = 9.0
    t[:, 1] = Tensor([5.0, 6.0])
    t[1:, ::2] = Tensor(-1.0)
    assert t.to_vec2() == [[9.0, 5.0, 9.0], [-1.0, 6.0, -1.0]]
    t[...] = Tensor([1.0, 2.0, 3.0])
    assert t.to_vec2() == [[1.0, 2.0, 3.0]] * 2
    row = Tensor([1.0, 2.0, 3.0])
    t[0] = row
    row.zero_set()
    assert t.to_vec2() == [[1.0, 2.0, 3.0]] * 2, "what was written is a copy"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_writes_as_numpy_does_them(data: st.DataObject) -> None:
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    pairs = [(base, Tensor(base))]
    for step in range(data.draw(st.integers(1, 6))):
        array, tensor = data.draw(st.sampled_from(pairs))
        kind = data.draw(st.sampled_from(["transpose", "slice", "write"]))
        if kind == "transpose" and array.ndim > 1:
            pairs.append((array.swapaxes(0, -1), tensor.transpose(0, -1)))
        elif kind == "slice" and array.ndim > 0 and array.shape[0] > 0:
            start = data.draw(st.integers(0, array.shape[0] - 1))
            stride = data.draw(st.sampled_from([1, 2, -1]))
            pairs.append((array[start::stride], tensor[start::stride]))
        else:
            array[...] = 100 + step
            tensor.const_set(100.0 + step)
    for array, tensor in pairs:
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.stride == tuple(s // 4 for s in array.strides) or array.size <= 1 or 1 in array.shape


def test_layouts_of_lazy_and_eager_tensors() -> None:
    for start in (Tensor(grid()), LazyTensor.new(grid())):
        turned = start.t()
        assert (start.stride, turned.stride) == ((3, 1), (1, 3))
        assert start.is_contiguous()
        assert not turned.is_contiguous()
        assert turned.is_fortran_contiguous()
        assert turned.contiguous().is_contiguous()
        part = start.narrow(1, 1, 2)
        assert part.layout().start_offset == 1
        assert list(part.strided_index()) == [1, 2, 4, 5]
        assert start.broadcast_left(2).stride == (0, 3, 1)
        assert (turned + turned).is_contiguous()
        assert turned.reshape((6,)).is_contiguous()
    lazy = LazyTensor.new(grid()).t()
    lazy.eval()
    assert lazy.stride == (1, 3), "known when recorded, whatever was evaluated since"


def test_ids() -> None:
    w, t = Var([1.0]), Tensor([1.0])
    assert w.id() == w.as_tensor().id() == w.id()
    assert t.id() == t.id()
    assert len({w.id(), t.id(), (t + 1.0).id(), t.copy().id()}) == 4


def test_a_long_chain_of_views_needs_no_recursion() -> None:
    base = Tensor([1.0, 2.0])
    view = base
    for _ in range(5000):
        view = view.reshape((2, 1)).squeeze(1)
    base.const_set(3.0)
    assert view.to_vec1() == [3.0, 3.0]


def test_whoever_holds_the_old_content_keeps_it() -> None:
    """A write goes into the memory where nobody else holds it; here somebody does, each in another way."""
    t = Tensor(np.zeros((64, 64), np.float32))
    lazy, array, numpy = LazyTensor.from_tensor(t), t.mlx(), t.numpy()
    doubled, copied, summed = LazyTensor.from_tensor(t) * 2.0, t.copy(), t + 1.0
    for write in (lambda: t.slice_set(Tensor.ones((1, 64)), 0, 3), lambda: t.narrow(1, 2, 5).one_set(), t.one_set):
        write()
    t[5] = 7.0
    assert float(t[5, 0]) == 7.0
    for held in (lazy.eval().numpy(), np.array(array), numpy, doubled.eval().numpy(), copied.numpy()):
        assert not held.any()
    assert (summed.numpy() == 1).all()


def test_a_write_that_fails_leaves_the_content() -> None:
    t = Tensor(grid())
    with pytest.raises(mc.error.InvalidIndexError):
        t.scatter_set(Tensor([[9], [9]]), Tensor([[1.0], [1.0]]), 1)
    assert t.to_vec2() == grid().tolist()


def test_a_source_that_shares_the_storage_is_refused() -> None:
    t = Tensor(grid())
    with pytest.raises(mc.Error, match=r"slice_set: got a source that shares the tensor's storage; takes copy\(\)"):
        t.slice_set(t.narrow(0, 0, 1), 0, 1)
    with pytest.raises(mc.Error, match="scatter_set: got a source that shares"):
        t.scatter_set(Tensor([[0]] * 2), t.narrow(1, 0, 1), 1)
    t.slice_set(t.narrow(0, 0, 1).copy(), 0, 1)
    assert t.to_vec2() == [grid()[0].tolist()] * 2


def test_an_argument_of_a_compiled_function_cannot_be_written() -> None:
    def write(x: Tensor) -> Tensor:
        x.t().narrow(0, 0, 1).zero_set()
        return x

    with pytest.raises(mc.Error, match="in place: a function that compile is tracing changes a tensor from outside"):
        mc.compile(write)(Tensor(grid()))


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_what_changes_nothing_gives_the_tensor_itself(kind: Any) -> None:
    """As candle's clone: the same id and, for what is written later, the same storage."""
    t = kind.new(grid())
    for same in (
        t.narrow(1, 0, 3),
        t.squeeze(0),
        t.to_dtype("f32"),
        t.contiguous(),
        t.detach(),
        t.pad_with_zeros(0, 0, 0),
        t.sum(()),
        t.log_sum_exp(()),
        t[:],
        t.flatten(1, 0),
        t.to_device(t.device),
    ):
        assert same.id() == t.id()
        assert same is t
    assert t.t().contiguous().id() != t.id()
    w = Var(grid())
    assert w.detach() is not w
    assert w.narrow(0, 0, 2) is w


def test_an_interrupted_write_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is raised where MLX returns, when the old content's memory has been written to."""
    evaluate, t = mx.eval, Tensor(np.ones((64, 64), np.float32))
    t.zero_set()  # whose memory nobody else holds
    rows = Tensor.ones((1, 64))

    def interrupted(*arrays: Any) -> None:
        monkeypatch.undo()
        evaluate(*arrays)
        raise KeyboardInterrupt

    monkeypatch.setattr(mx, "eval", interrupted)
    with pytest.raises(KeyboardInterrupt):
        t.slice_set(rows, 0, 3)
    assert t.sum_all().to_scalar() in (0.0, 64.0)
    t.slice_set(rows, 0, 4)
    assert t[4].to_vec1() == [1.0] * 64


def test_a_detached_result_lets_its_graph_go() -> None:
    w = Var([[1.0, 2.0], [3.0, 4.0]])
    loss = Tensor([[1.0, 1.0]]).matmul(w).sqr().sum_all()
    inner = weakref.ref(loss._node.inputs[0])
    kept = loss.detach()
    assert inner() is not None
    del loss
    assert inner() is None
    assert kept.to_scalar() == 52.0
    assert not kept.track_op()


def test_a_detached_variable_still_shares_with_it() -> None:
    w = Var([1.0, 2.0])
    w.detach().zero_set()
    assert w.to_vec1() == [0.0, 0.0]
