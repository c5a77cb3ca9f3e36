"""How an optimizer is set up: a struct of numbers, a learning rate, or numbers by name."""

from __future__ import annotations

from metal_candle import Var, nn

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
