"""AdamW (``AdamWUpdate``) against its definition in float64, clipping, and its state."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Tensor, Var, nn

import numpy as np
import pytest

PARAMS = nn.ParamsAdamW(lr=0.05, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
RNG = np.random.default_rng(0)
START = RNG.standard_normal((4, 3)).astype(np.float32)
GRADIENTS = [RNG.standard_normal((4, 3)).astype(np.float32) for _ in range(6)]


def reference(steps: int) -> Any:
    """Loshchilov and Hutter 2019, algorithm 2, in float64."""
    w, m, v = START.astype(np.float64), np.zeros((4, 3)), np.zeros((4, 3))
    for t, g in enumerate(GRADIENTS[:steps], 1):
        m = PARAMS.beta1 * m + (1 - PARAMS.beta1) * g
        v = PARAMS.beta2 * v + (1 - PARAMS.beta2) * g.astype(np.float64) ** 2
        w = w - PARAMS.lr * PARAMS.weight_decay * w
        w = w - PARAMS.lr * (m / (1 - PARAMS.beta1**t)) / (np.sqrt(v / (1 - PARAMS.beta2**t)) + PARAMS.eps)
    return w


@pytest.mark.parametrize("compiled", [False, True])
def test_steps(compiled: bool) -> None:
    w = Var(START)
    optimizer = nn.AdamW([w], PARAMS)

    def step(gradient: Tensor) -> Tensor:
        loss = (w * gradient).sum_all()
        optimizer.backward_step(loss)
        return loss

    run: Any = mc.compile(step) if compiled else step
    for i, gradient in enumerate(GRADIENTS, 1):
        run(Tensor(gradient))
        # Some float32 operations on numbers near 1.
        np.testing.assert_allclose(w.numpy(), reference(i), rtol=1e-5, atol=1e-6)
        assert optimizer.step_count() == i
    assert w.is_variable()


def test_the_rate_can_change_in_a_compiled_step() -> None:
    w = Var([1.0])
    optimizer = nn.AdamW.new_lr([w], 0.1)
    step = mc.compile(lambda x: optimizer.backward_step((w * x).sum_all()))
    optimizer.set_learning_rate(0.0)
    step(Tensor([1.0]))
    assert w.to_vec1() == [1.0]
    optimizer.set_learning_rate(0.5)
    assert optimizer.learning_rate() == 0.5
    step(Tensor([1.0]))
    assert w.to_vec1()[0] < 0.6
    assert step.traces == 1


def test_variables_without_a_gradient_stay() -> None:
    w, other, ids = Var([1.0]), Var([2.0]), Var([3])
    optimizer = nn.AdamW([w, other, ids])
    assert [var.dtype for var in optimizer.vars()] == [mc.DType.F32] * 2
    optimizer.backward_step((w * 3.0).sum_all())
    assert (other.to_vec1(), ids.to_vec1()) == ([2.0], [3])
    assert w.to_vec1()[0] < 1.0


def test_state_comes_back() -> None:
    first, second = Var(START), Var(START)
    a, b = nn.AdamW([first], PARAMS), nn.AdamW([second], PARAMS)
    for gradient in GRADIENTS[:3]:
        a.step({first: Tensor(gradient)})
    second.set(first)
    b.load_state({name: tensor.detach() for name, tensor in a.state().items()})
    for gradient in GRADIENTS[3:]:
        a.step({first: Tensor(gradient)})
        b.step({second: Tensor(gradient)})
    np.testing.assert_array_equal(first.numpy(), second.numpy())
    with pytest.raises(mc.TrainingError, match="got 1 entries for an optimizer that has 3"):
        b.load_state({"count": Tensor(0.0)})


def test_clipping_by_global_norm() -> None:
    gradients = [Tensor([3.0]), Tensor([[0.0, 4.0]], dtype="f16")]
    norm = nn.global_norm(gradients)
    assert norm.to_scalar() == 5.0
    assert nn.clip_factor(norm, 1.0).to_scalar() == pytest.approx(0.2, rel=1e-5)
    assert nn.clip_factor(norm, 10.0).to_scalar() == 1.0
    with pytest.raises(mc.TrainingError, match="global_norm: there are no gradients"):
        nn.global_norm([])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lr", -1.0, "AdamW: lr is -1.0; takes at least 0"),
        ("beta1", 1.0, "AdamW: beta1 is 1.0; takes 0 <= it < 1"),
        ("eps", 0.0, "AdamW: eps is 0.0; takes more than 0"),
        ("weight_decay", float("nan"), "AdamW: weight_decay is nan; takes at least 0"),
    ],
)
def test_parameters_outside_their_range(name: str, value: float, text: str) -> None:
    with pytest.raises(mc.TrainingError, match=text):
        nn.AdamW([], nn.ParamsAdamW(**{name: value}))
