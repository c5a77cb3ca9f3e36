"""Views that are merged: values to the bit, layouts of what is held, gradients, random chains."""

from __future__ import annotations

from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.error import ShapeMismatchError
from metal_candle.graph.operations.movement import Reshape
from metal_candle.graph.structure import survey
from metal_candle.graph.term import apply, terms_of
from metal_candle.shape import Shape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import lowered


def cube() -> LazyTensor:
    return LazyTensor.new(np.arange(30, dtype=np.float32).reshape(2, 3, 5))


VIEWS: list[Any] = [
    lambda x, k: x.transpose(k % len(x.shape), (k + 1) % len(x.shape)),
    lambda x, k: x.permute(tuple(np.roll(range(len(x.shape)), k).tolist())),
    lambda x, k: x.reshape((x.nelement,) if k % 2 else (*x.shape[::-1],)),
    lambda x, k: x.unsqueeze(k % (len(x.shape) + 1)) if len(x.shape) < 5 else x.reshape((x.nelement,)),
    lambda x, k: x.squeeze(k % len(x.shape)) if len(x.shape) > 1 else x,
    lambda x, k: x.narrow(k % len(x.shape), x.shape[k % len(x.shape)] // 3, (x.shape[k % len(x.shape)] + 1) // 2),
    lambda x, k: x.broadcast_as((2, *x.shape)) if x.nelement < 200 and len(x.shape) < 5 else x,
    lambda x, k: x.contiguous(),
    lambda x, k: x.exp(),
]


@given(st.lists(st.tuples(st.integers(0, len(VIEWS) - 1), st.integers(0, 5)), max_size=12), st.integers(0, 11))
@settings(max_examples=150, deadline=None)
def test_a_chain_of_views_gives_the_same_bits_and_keeps_the_layout_of_what_is_held(
    chain: list[tuple[int, int]], place: int
) -> None:
    def values(x: LazyTensor) -> tuple[LazyTensor, LazyTensor]:
        held = y = x
        for i, (view, k) in enumerate(chain):
            y = VIEWS[view](y, k)
            held = y if i == place else held
        return held, y

    x = cube() * 0.125
    with features.disabled("rewrite"):
        expected = [(t.eval().numpy(), t.layout()) for t in values(x)]
    held, y = values(x)
    before = held.layout()
    found = y.eval().numpy()
    assert y.layout() == expected[1][1]
    assert held.layout() == before == expected[0][1]
    np.testing.assert_array_equal(found, expected[1][0])
    np.testing.assert_array_equal(held.eval().numpy(), expected[0][0])


def test_a_held_view_between_is_computed_and_the_rest_merged() -> None:
    x = cube()
    turned = x.transpose(0, 1)
    back = turned.transpose(0, 1).exp()
    assert lowered(back) == ["transpose", "exp"]
    back.eval()
    assert turned.is_evaluated()
    np.testing.assert_array_equal(turned.eval().numpy(), np.swapaxes(x.eval().numpy(), 0, 1))


def test_a_reshape_that_copies_is_not_made_twice() -> None:
    flat = cube().t().reshape((30,))
    both = flat.exp().reshape((6, 5)) * flat.reshape((6, 5))
    del flat
    assert lowered(both).count("reshape") == 3


def test_the_matrix_of_a_product_is_turned_last() -> None:
    x = cube()
    keys = x.transpose(0, 1)
    scores = keys @ keys.t()
    del keys
    assert lowered(scores) == ["transpose", "transpose", "matmul"]


def test_a_gradient_that_ends_does_so_between_views() -> None:
    v = Var.from_tensor(Tensor(np.arange(6, dtype=np.float32).reshape(2, 3)))
    x = LazyTensor.from_tensor(v)
    loss = (x.t().detach().t() * x).sum_all()
    assert lowered(loss) == ["transpose", "detach", "transpose", "mul", "sum"]
    np.testing.assert_array_equal(loss.backward()[v].numpy(), v.numpy())


def test_layouts_after_a_gradient_are_those_that_were_recorded() -> None:
    v = Var.from_tensor(Tensor(np.arange(12, dtype=np.float32).reshape(3, 4)))
    x = LazyTensor.from_tensor(v)
    turned = x.t()
    kept = [turned.t(), turned, x.narrow(0, 1, 2).reshape((8,)), x.reshape((2, 6)).reshape((3, 4))]
    layouts = [t.layout() for t in kept]
    fresh = [LazyTensor.from_tensor(v).t().t(), x.narrow(0, 1, 2).narrow(0, 1, 1)]
    grads = sum((t * t).sum_all() for t in (*kept, *fresh)).backward()
    assert [t.layout() for t in kept] == layouts
    assert fresh[0].stride == (4, 1)
    assert fresh[1].layout().start_offset == 8
    square = np.array([[8.0], [10.0], [12.0]], np.float32) * v.numpy()
    np.testing.assert_array_equal(grads[v].numpy(), square)


def test_a_rule_cannot_reshape_to_another_count() -> None:
    x = terms_of(survey([LazyTensor.new(np.zeros((2, 3), np.float32)).exp()._node])).roots[0]
    assert tuple(apply(Reshape(Shape((3, 2))), x).shape) == (3, 2)
    with pytest.raises(ShapeMismatchError, match=r"reshape: 6 elements do not fit shape \(7,\)"):
        apply(Reshape(Shape((7,))), x)
