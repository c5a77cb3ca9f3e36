"""What an operation saves for its gradient reaches that gradient, and no other whose result the operation has become.

Gradients that were recorded without rewriting still name the operations as they were spelled; where the graph is
rewritten when it is computed, a rule may put a value that saves something in another's place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, eval_all, features
from metal_candle.graph.differentiate import gradients

import numpy as np
import pytest

SHAPE = (3, 5)
WEIGHT = Tensor(np.random.default_rng(1).uniform(0.5, 1, SHAPE[1:]).astype(np.float32))
UP = Tensor(np.random.default_rng(2).uniform(-1, 1, SHAPE).astype(np.float32))


SAVING: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: x.silu(),
    "rms_norm": lambda x: x.rms_norm(1e-5),
    "layer_norm": lambda x: x.layer_norm(1e-5),
}
# Each is replaced by its input.
NOTHING: dict[str, Callable[[Any], Any]] = {
    "affine_nothing": lambda y: y * 1.0,
    "times_one": lambda y: y.mul_scalar(1.0),
    "power_1": lambda y: y.powf(1.0),
    "turn_nothing": lambda y: y.permute((0, 1)),
    "view_of_itself": lambda y: y.reshape(SHAPE),
    "turn_turn": lambda y: y.t().t(),
    "neg_neg": lambda y: y.neg().neg(),
}


def variable() -> Var:
    return Var.from_tensor(Tensor(np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)))


def recorded(loss: Any, *variables: Var) -> list[LazyTensor]:
    """Gradients that wait to be computed, as those of a function that is being compiled do."""
    found = gradients(loss._node)
    return [LazyTensor._from_node(found[variable._node.variable]) for variable in variables]


@pytest.mark.parametrize("rule", NOTHING)
@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize("held", [False, True], ids=["dropped", "held"])
def test_a_saving_operation_in_the_place_of_another(saving: str, rule: str, held: bool) -> None:
    def gradient() -> tuple[Any, list[Any]]:
        x = variable()
        y = SAVING[saving](LazyTensor.from_tensor(x))
        z = NOTHING[rule](y)
        return recorded(z.sin().sum_all(), x)[0], [y, z] if held else []

    with features.disabled("rewrite"):
        found, others = gradient()
        expected = gradient()[0].eval().numpy()
    # Recorded as it was spelled, computed as it is rewritten.
    result = eval_all([found, *others])[0]
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)


def test_both_gradients_of_one_value() -> None:
    """A spelled SiLU beside the operation: each gradient makes do with what its own operation gives."""

    def gradient() -> Any:
        x = variable()
        lazy = LazyTensor.from_tensor(x)
        spelled, fused = lazy * lazy.sigmoid(), lazy.silu()
        return recorded((spelled.sin() + fused.cos() * 2.0).sum_all(), x)[0]

    with features.disabled("rewrite"):
        found, expected = gradient(), gradient().eval().numpy()
    np.testing.assert_allclose(found.eval().numpy(), expected, rtol=0, atol=1e-6)


def test_a_fused_operation_whose_gradient_is_of_its_parts() -> None:
    """The weight's product becomes part of the norm; its gradient asks for the product's inputs and result."""

    def gradient() -> list[Any]:
        x, weight = variable(), Var.from_tensor(WEIGHT)
        lazy = LazyTensor.from_tensor(x)
        normed = lazy.rms_norm(1e-5) * LazyTensor.from_tensor(weight)
        gated = normed.silu() * LazyTensor.from_tensor(UP)
        return recorded((gated * normed).sum_all(), x, weight)

    with features.disabled("rewrite"):
        found, expected = gradient(), [each.eval().numpy() for each in gradient()]
    for got, want in zip(eval_all(found), expected):
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-5)
