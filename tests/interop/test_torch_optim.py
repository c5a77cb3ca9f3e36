"""The optimizers beside PyTorch's, over twenty steps, and clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import Tensor, Var, nn

import numpy as np
import pytest

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
SHAPES = [(4, 3), (5,), ()]
STARTS = [RNG.standard_normal(shape).astype(np.float32) for shape in SHAPES]
ROWS = [[np.float32(RNG.standard_normal(shape)) for shape in SHAPES] for _ in range(20)]

CASES: dict[str, tuple[Callable[[list[Var]], Any], Callable[[list[Any]], Any]]] = {
    "sgd": (lambda vars: nn.SGD(vars, 0.1), lambda ps: torch.optim.SGD(ps, 0.1)),
    "momentum": (
        lambda vars: nn.SGD(vars, nn.ParamsSGD(0.1, momentum=0.9, weight_decay=0.05)),
        lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.05),
    ),
    "nesterov": (
        lambda vars: nn.SGD(vars, nn.ParamsSGD(0.1, momentum=0.9, nesterov=True)),
        lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, nesterov=True),
    ),
    "dampening": (
        lambda vars: nn.SGD(vars, nn.ParamsSGD(0.1, momentum=0.8, dampening=0.3)),
        lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.8, dampening=0.3),
    ),
    "adam": (
        lambda vars: nn.Adam(vars, nn.ParamsAdam(lr=0.05, beta1=0.8, beta2=0.95)),
        lambda ps: torch.optim.Adam(ps, 0.05, (0.8, 0.95)),
    ),
    "adam with decay": (
        lambda vars: nn.Adam(vars, nn.ParamsAdam(lr=0.05, weight_decay=0.1)),
        lambda ps: torch.optim.Adam(ps, 0.05, weight_decay=0.1),
    ),
    "adamw": (lambda vars: nn.AdamW.new_lr(vars, 0.05), lambda ps: torch.optim.AdamW(ps, 0.05)),
    "groups": (
        lambda vars: nn.AdamW(
            [{"params": vars[:1]}, {"params": vars[1:], "lr": 0.2, "weight_decay": 0.5}], nn.ParamsAdamW(lr=0.05)
        ),
        lambda ps: torch.optim.AdamW([{"params": ps[:1]}, {"params": ps[1:], "lr": 0.2, "weight_decay": 0.5}], 0.05),
    ),
}


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps(name: str, max_norm: float | None) -> None:
    vars, theirs = [Var(start) for start in STARTS], [torch.nn.Parameter(torch.tensor(start)) for start in STARTS]
    ours, other = CASES[name][0](vars), CASES[name][1](theirs)
    if name == "dampening":  # torch starts from the whole first gradient, mlx and we from 0
        for parameter in theirs:
            other.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for row in ROWS:
        norm = ours.step({var: Tensor(gradient) for var, gradient in zip(vars, row)}, max_norm=max_norm)
        for parameter, gradient in zip(theirs, row):
            parameter.grad = torch.tensor(gradient)
        if max_norm is not None:
            wanted = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
            assert norm.to_scalar() == pytest.approx(float(wanted), rel=1e-5)
        other.step()
    for var, parameter in zip(vars, theirs):
        # Some twenty float32 operations on numbers near 1.
        np.testing.assert_allclose(var.numpy(), parameter.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_muon_makes_the_same_move_up_to_its_iterations() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    start, gradient = RNG.standard_normal((6, 4)).astype(np.float32), RNG.standard_normal((6, 4)).astype(np.float32)
    var, parameter = Var(start), torch.nn.Parameter(torch.tensor(start))
    nn.Muon([var], nn.ParamsMuon(0.02, weight_decay=0.0)).step({var: Tensor(gradient)})
    parameter.grad = torch.tensor(gradient)
    torch.optim.Muon([parameter], 0.02, weight_decay=0.0).step()
    # torch iterates in bfloat16: the moves, of entries near 0.01, agree in two digits.
    np.testing.assert_allclose(var.numpy(), parameter.detach().numpy(), atol=5e-4)
    assert np.abs(var.numpy() - start).max() > 5e-3


@pytest.mark.parametrize("special", [1.0, float("inf"), float("nan")])
def test_clipping(special: float) -> None:
    gradients = [row.copy() for row in map(np.atleast_1d, ROWS[0])]
    gradients[1][0] = special
    vars = [Var(np.zeros_like(gradient)) for gradient in gradients]
    theirs = [torch.nn.Parameter(torch.zeros(gradient.shape)) for gradient in gradients]
    for clip in ("norm", "value"):
        grads = {var: Tensor(gradient) for var, gradient in zip(vars, gradients)}
        for parameter, gradient in zip(theirs, gradients):
            parameter.grad = torch.tensor(gradient)
        if clip == "norm":
            norm, wanted = nn.clip_grad_norm(grads, 0.5), torch.nn.utils.clip_grad_norm_(theirs, 0.5)
            np.testing.assert_allclose(norm.to_scalar(), float(wanted), rtol=1e-6)
        else:
            nn.clip_grad_value(grads, 0.5)
            torch.nn.utils.clip_grad_value_(theirs, 0.5)
        for var, parameter in zip(vars, theirs):
            np.testing.assert_allclose(grads[var].numpy(), parameter.grad.numpy(), rtol=1e-6)
