"""SGD (``SGDUpdate``) against its definition in float64, and mlx's."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, Var, nn

import numpy as np
import pytest
from optimizing import GRADIENTS, HOW, NEAR, START, after, by_mlx

PARAMS = {
    "plain": nn.ParamsSGD(0.1),
    "decay": nn.ParamsSGD(0.1, weight_decay=0.05),
    "momentum": nn.ParamsSGD(0.1, momentum=0.9),
    "dampening": nn.ParamsSGD(0.1, momentum=0.8, dampening=0.3, weight_decay=0.05),
    "nesterov": nn.ParamsSGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.05),
}


def reference(p: nn.ParamsSGD, count: int) -> Any:
    """Sutskever et al. 2013 with the dampening and decay of ``mlx.optimizers.SGD``, in float64."""
    w, v = START.astype(np.float64), 0.0
    for gradient in GRADIENTS[:count]:
        g = gradient + p.weight_decay * w
        v = p.momentum * v + (1 - p.dampening) * g
        w = w - p.lr * (g + p.momentum * v if p.nesterov else v if p.momentum else g)
    return w


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", PARAMS)
def test_steps(name: str, how: str) -> None:
    for count in (1, 20):
        got = after(lambda vars: nn.SGD(vars, PARAMS[name]), count, how)
        np.testing.assert_allclose(got, reference(PARAMS[name], count), **NEAR)


@pytest.mark.parametrize("name", PARAMS)
def test_mlx_takes_the_same_steps(name: str) -> None:
    from mlx import optimizers

    p = PARAMS[name]
    theirs = optimizers.SGD(p.lr, p.momentum, p.weight_decay, p.dampening, p.nesterov)
    np.testing.assert_array_equal(after(lambda vars: nn.SGD(vars, p), 20), by_mlx(theirs, 20))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_halves_are_stepped_in_float32(dtype: DType) -> None:
    # A momentum kept in a half would stop growing where the gradient is below its rounding.
    w = Var.from_tensor(Tensor([0.0]).to_dtype(dtype))
    optimizer = nn.SGD([w], nn.ParamsSGD(1e-3, momentum=0.999))
    for _ in range(400):
        optimizer.step({w: Tensor([1.0]).to_dtype(dtype)})
    momentum = optimizer.state()["0.v"]
    assert (w.dtype, momentum.dtype) == (dtype, DType.F32)
    assert momentum.to_vec1()[0] == pytest.approx((1 - 0.999**400) / 1e-3, rel=1e-5)


def test_a_learning_rate_is_all_it_needs() -> None:
    w = Var([1.0, 2.0])
    optimizer = nn.SGD.new([w], 0.5)
    optimizer.step({w: Tensor([1.0, -1.0])})
    assert w.to_vec1() == [0.5, 2.5]
    assert optimizer.into_inner() == [w]
    assert optimizer.params() == nn.ParamsSGD(0.5)
    assert list(optimizer.state()) == ["step", "learning_rate"]


TAKES = "takes ParamsSGD, or a learning rate, and lr, momentum, nesterov, dampening, weight_decay by name"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (-0.1, "invalid training configuration: SGD: lr is -0.1; takes at least 0, and finite"),
        ("fast", f"SGD: got 'fast' for the configuration; {TAKES}"),
        (True, f"SGD: got True for the configuration; {TAKES}"),
        (nn.ParamsSGD(0.1, momentum="0.9"), "SGD: got '0.9' for momentum; takes a number"),  # type: ignore[arg-type]
        (nn.ParamsSGD(0.1, nesterov=1), "SGD: got 1 for nesterov; takes True or False"),  # type: ignore[arg-type]
        (
            nn.ParamsSGD(0.1, nesterov=True),
            "invalid training configuration: SGD: nesterov with momentum 0.0, dampening 0.0; takes a momentum more "
            "than 0 and no dampening",
        ),
    ],
)
def test_what_it_refuses(config: Any, text: str) -> None:
    with pytest.raises(mc.Error) as raised:
        nn.SGD([Var([1.0])], config)
    assert str(raised.value) == text
