"""``Custom`` and ``CustomWithoutBackward``: operations that users bring, and mistakes in them."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.tensor.custom_op import CustomOp, CustomOp1, CustomOp2

import mlx.core as mx
import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


class Elu(CustomOp1):
    """The operation of candle's own test of custom operations."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def name(self) -> str:
        return "elu"

    def forward(self, x: mx.array) -> mx.array:
        return mx.where(x > 0, x, (mx.exp(x) - 1) * self.alpha)

    def backward(self, args: Any, res: mx.array, grad: mx.array) -> Any:
        return mx.where(args[0] > 0, grad, grad * (res + self.alpha))


class OuterSum(CustomOp2):
    def forward(self, a: mx.array, b: mx.array) -> mx.array:
        return a[:, None] + b[None, :]

    def backward(self, args: Any, res: mx.array, grad: mx.array) -> Any:
        return grad.sum(1), None


class NoBackward:
    name = "no backward"

    def forward(self, *arrays: mx.array) -> mx.array:
        return sum(arrays[1:], arrays[0])  # type: ignore[arg-type]


def start(kind: Any, data: Any) -> Any:
    return LazyTensor.from_tensor(data) if kind is LazyTensor else data


@KINDS
def test_forward_and_backward(kind: Any) -> None:
    w = Var([-2.0, -1.0, 0.5, 3.0])
    y = start(kind, w).apply_op1(Elu(2.0))
    assert (type(y), y.shape, y.dtype) == (kind, (4,), DType.F32)
    want = np.where(w.numpy() > 0, w.numpy(), 2 * np.expm1(w.numpy()))
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-6)
    slope = np.where(w.numpy() > 0, 1, 2 * np.exp(w.numpy()))
    np.testing.assert_allclose((y * 3.0).sum_all().backward()[w].numpy(), 3 * slope, rtol=1e-6)


@KINDS
def test_two_and_three_arguments(kind: Any) -> None:
    a, b = Var([1.0, 2.0]), Var([10.0, 20.0, 30.0])
    y = start(kind, a).apply_op2(start(kind, b), OuterSum())
    assert y.to_vec2() == [[11.0, 21.0, 31.0], [12.0, 22.0, 32.0]]
    grads = y.backward()
    assert grads[a].to_vec1() == [3.0, 3.0]
    assert grads.get(b) is None or grads[b].to_vec1() == [0.0] * 3
    x = start(kind, Tensor([1.0, 2.0]))
    assert x.apply_op3(x, x, NoBackward()).to_vec1() == [3.0, 6.0]
    for arc, arguments in ((x.apply_op1_arc, ()), (x.apply_op2_arc, (x,)), (x.apply_op3_arc, (x, x))):
        assert arc(*arguments, NoBackward()).to_vec1() == [1.0 * (len(arguments) + 1), 2.0 * (len(arguments) + 1)]


@KINDS
def test_without_backward_differentiating_raises_and_no_bwd_cuts(kind: Any) -> None:
    w = Var([1.0])
    y = start(kind, w).apply_op1(NoBackward())
    with pytest.raises(NotImplementedError, match="backward: no backward has no gradient"):
        y.backward()
    x = start(kind, w)
    for cut in (
        x.apply_op1_no_bwd(NoBackward()),
        x.apply_op2_no_bwd(x, NoBackward()),
        x.apply_op3_no_bwd(x, x, NoBackward()),
    ):
        assert not cut.track_op()
        grads = cut.backward()
        assert grads.get(w) is None


def test_shapes_are_known_when_recorded_and_nothing_is_computed() -> None:
    ran: list[bool] = []

    class Watched(CustomOp):
        def forward(self, x: mx.array) -> mx.array:
            ran.append(True)
            return x.sum(axis=0).astype(mx.float16)

    y = LazyTensor.new(np.ones((3, 2), np.float32)).apply_op1(Watched())
    assert (y.shape, y.dtype, ran) == ((2,), DType.F16, [True])
    assert y.eval().to_vec1() == [3.0, 3.0]


def test_an_operation_may_tell_its_shape_itself() -> None:
    class ReadsValues(CustomOp):
        """What looks at values cannot be tried on arrays that are never computed."""

        def infer(self, x: Any) -> Any:
            return (2, *x.shape), x.dtype

        def forward(self, x: mx.array) -> mx.array:
            return mx.array(np.stack([np.array(x), np.array(x) + 1]))

    y = LazyTensor.new([1.0, 2.0]).apply_op1(ReadsValues())
    assert (y.shape, y.dtype) == ((2, 2), DType.F32)
    assert y.to_vec2() == [[1.0, 2.0], [2.0, 3.0]]


def test_booleans_surface_as_u8() -> None:
    class Positive(CustomOp):
        def forward(self, x: mx.array) -> mx.array:
            return x > 0

    y = LazyTensor.new([1.0, -1.0]).apply_op1(Positive())
    assert y.dtype is DType.U8
    assert y.to_vec1() == [1, 0]


@KINDS
def test_mistakes_in_an_operation_are_named(kind: Any) -> None:
    class Wrong(CustomOp):
        def __init__(self, gives: Any, back: Any = None) -> None:
            self.gives, self.back = gives, back

        def forward(self, x: mx.array) -> Any:
            return self.gives(x)

        def backward(self, args: Any, res: mx.array, grad: mx.array) -> Any:
            return self.back(grad)

    w = Var([1.0, 2.0])
    x = start(kind, w)
    with pytest.raises(mc.Error, match=r"Wrong: forward gave list; takes one mx\.array"):
        x.apply_op1(Wrong(lambda x: [x]))
    with pytest.raises(mc.Error, match=r"apply_op: got int; takes an object with forward\(\*arrays\)"):
        x.apply_op1(3)
    with pytest.raises(mc.Error, match="CustomOp: has no forward"):
        x.apply_op1(CustomOp())
    with pytest.raises(mc.Error, match="Wrong: backward gave 2 gradients; takes one, or None, per input"):
        x.apply_op1(Wrong(lambda x: x, lambda grad: (grad, grad))).backward()
    with pytest.raises(ValueError, match=r"Wrong: backward gave a gradient \(1,\).* for an input \(2,\)"):
        x.apply_op1(Wrong(lambda x: x, lambda grad: grad[:1])).backward()


def test_in_place() -> None:
    class Grow(CustomOp):
        def forward(self, x: mx.array, *others: mx.array) -> mx.array:
            return sum(others, x + 1)

    t = Tensor([[1.0, 2.0], [3.0, 4.0]])
    t.inplace_op1(Grow())
    assert t.to_vec2() == [[2.0, 3.0], [4.0, 5.0]]
    t[0].inplace_op2(Tensor([10.0, 20.0]), Grow())
    assert t.to_vec2() == [[13.0, 24.0], [4.0, 5.0]]
    t.inplace_op3(t, t, Grow())
    assert t.to_vec2() == [[40.0, 73.0], [13.0, 16.0]]
    w = Var([1.0])
    w.inplace_op1(Grow())
    assert w.to_vec1() == [2.0]
    with pytest.raises(ValueError, match=r"OuterSum: in place, it gave shape \[2, 2\]; takes \[2\]"):
        Tensor([1.0, 2.0]).inplace_op2(Tensor([1.0, 2.0]), OuterSum())


def test_inside_compile() -> None:
    w = Var([1.0, -1.0])
    f = mc.compile(lambda x: (x * w).apply_op1(Elu(1.0)).sum_all())
    np.testing.assert_allclose(f(Tensor([2.0, 2.0])).numpy(), 2 + np.expm1(-2), rtol=1e-6)
    np.testing.assert_allclose(f(Tensor([3.0, 3.0])).numpy(), 3 + np.expm1(-3), rtol=1e-6)
    assert f.traces == 1


@KINDS
def test_what_is_no_operation_and_no_gradient_is_named(kind: Any) -> None:
    class Gives(CustomOp):
        def __init__(self, back: Any) -> None:
            self.back = back

        def forward(self, x: mx.array) -> Any:
            return x

        def backward(self, args: Any, res: mx.array, grad: mx.array) -> Any:
            return self.back

    w = Var([1.0, 2.0])
    x = start(kind, w)
    for back, name in ((1.0, "float"), ([1.0], "float"), ("ab", "str"), (np.ones(2), "ndarray")):
        with pytest.raises(mc.Error, match=rf"Gives: backward gave {name}; takes an mx\.array, or None, per input"):
            x.apply_op1(Gives(back)).backward()
    # None counts as zeros.
    for nothing in (None, (None,), [None]):
        grads = x.apply_op1(Gives(nothing)).backward()
        assert grads[w].to_vec1() == [0.0, 0.0]
    for wrong in (Gives, "abc", None):
        with pytest.raises(mc.Error, match=r"got .*; takes an object") as caught:
            x.apply_op1(wrong)
        assert "\n" not in str(caught.value)
        with pytest.raises(mc.Error, match=r"got .*; takes an object"):
            Tensor([1.0]).inplace_op1(wrong)
