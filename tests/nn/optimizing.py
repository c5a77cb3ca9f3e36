"""What the tests of optimizers share: a variable, gradients for it, and steps on both kinds of tensors and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, nn

import numpy as np
from checking import normal

START = normal(4, 3, seed=0)
GRADIENTS = [normal(4, 3, seed=seed) for seed in range(1, 21)]
HOW = ("eager", "lazy", "compiled")
# Some twenty float32 operations on numbers near 1.
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
ALL: dict[str, Callable[..., nn.Optimizer[Any]]] = {
    "sgd": lambda vars: nn.SGD(vars, 0.1),
    "momentum": lambda vars: nn.SGD(vars, nn.ParamsSGD(0.1, momentum=0.9, weight_decay=0.01)),
    "adam": lambda vars: nn.Adam(vars, nn.ParamsAdam(lr=0.05, weight_decay=0.01)),
    "adamw": lambda vars: nn.AdamW(vars, nn.ParamsAdamW(lr=0.05)),
    "muon": lambda vars: nn.Muon(vars, 0.02),
}


def steps(
    optimizer: nn.Optimizer[Any], vars: Sequence[Var], gradients: Sequence[Sequence[Any]], how: str = "eager"
) -> None:
    """A step for each row of gradients, by ``backward_step`` of a loss that has these gradients."""

    def step(*given: Tensor) -> Tensor:
        kind: Any = LazyTensor.from_tensor if how == "lazy" else lambda tensor: tensor
        loss = sum((kind(var) * kind(gradient)).sum_all().to_dtype(DType.F32) for var, gradient in zip(vars, given))
        optimizer.backward_step(loss)
        return loss

    run = mc.compile(step) if how == "compiled" else step
    for row in gradients:
        run(*[Tensor(gradient).to_dtype(var.dtype) for var, gradient in zip(vars, row)])


def after(make: Callable[..., nn.Optimizer[Any]], count: int, how: str = "eager", dtype: Any = DType.F32) -> Any:
    """``START`` after ``count`` of ``GRADIENTS``."""
    var = Var.from_tensor(Tensor(START).to_dtype(dtype))
    steps(make([var]), [var], [[gradient] for gradient in GRADIENTS[:count]], how)
    return var.to_dtype(DType.F32).numpy()


def by_mlx(optimizer: Any, count: int, start: Any = START, gradients: Any = GRADIENTS) -> Any:
    """``start`` after ``count`` of ``gradients`` by an optimizer of ``mlx.optimizers``."""
    import mlx.core as mx

    held = {"w": mx.array(start)}
    for gradient in gradients[:count]:
        held = optimizer.apply_gradients({"w": mx.array(gradient)}, held)
    return np.array(held["w"])
