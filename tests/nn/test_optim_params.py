"""How an optimizer is set up: a struct of numbers, a learning rate, or numbers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import Var, nn

import mlx.core as mx
import numpy as np
import pytest


def test_numbers_by_name() -> None:
    w = Var([1.0])
    assert nn.AdamW([w], lr=0.1, weight_decay=0.5).params() == nn.ParamsAdamW(lr=0.1, weight_decay=0.5)
    assert nn.AdamW([w]).params() == nn.ParamsAdamW()
    assert nn.SGD([w], 0.1, momentum=0.9).params() == nn.ParamsSGD(0.1, momentum=0.9)
    assert nn.SGD.new([w], lr=0.1).params() == nn.ParamsSGD(0.1)
    takes = "takes ParamsSGD, or a learning rate, and lr, momentum, nesterov, dampening, weight_decay by name"
    with pytest.raises(TypeError, match=f"^SGD: got no configuration; {takes}"):
        nn.SGD([w])
    with pytest.raises(TypeError, match=f"^SGD: got lr, beta; {takes}"):
        nn.SGD([w], 0.1, beta=0.9)
    with pytest.raises(TypeError, match=f"^SGD: got ParamsSGD and momentum; {takes}"):
        nn.SGD([w], nn.ParamsSGD(0.1), momentum=0.9)
    with pytest.raises(TypeError, match=r"^SGD: got 'fast' for the configuration; takes ParamsSGD"):
        nn.SGD([w], "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.float64, np.array, lambda value: mx.array(value, mx.float64)])
def test_numbers_of_numpy_and_mlx_do_what_pythons_do(kind: Callable[[float], float]) -> None:
    found = []
    for of in (float, kind):
        w, v = Var([1.0, -2.0]), Var([1.0, -2.0])
        made: list[nn.Optimizer[Any]] = [
            nn.AdamW([w], nn.ParamsAdamW(lr=of(0.1), beta1=of(0.8), weight_decay=of(0.3))),
            nn.SGD([v], nn.ParamsSGD(of(0.1), momentum=of(0.7))),
        ]
        for _ in range(3):
            for optimizer, var in zip(made, (w, v)):
                optimizer.backward_step((var * var).sum_all())
        values = [{name: tensor.numpy().tolist() for name, tensor in optimizer.state().items()} for optimizer in made]
        found.append((w.to_vec1(), v.to_vec1(), values))
    assert found[0] == found[1]
