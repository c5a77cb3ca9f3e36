"""Low-rank updates whose matrices are layers, and what float16 must not lose to the scale."""

from __future__ import annotations

from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.nn.linear import Linear

import numpy as np
import pytest
from rewriting import lowered

RNG = np.random.default_rng(0)


def tensor(*shape: int) -> Tensor:
    return Tensor(RNG.uniform(-1, 1, shape).astype(np.float32))


def test_two_layers_are_a_low_rank_update() -> None:
    x, down, up, base = tensor(5, 13), tensor(4, 13), tensor(7, 4), tensor(5, 7)

    def update(scaled_at_rank: bool) -> LazyTensor:
        at_rank = Linear(down).forward(LazyTensor.from_tensor(x))
        if scaled_at_rank:
            return Linear(up).forward(at_rank * 0.5)
        return Linear(up).forward(at_rank) * 0.5

    want = x.numpy() @ down.numpy().T @ up.numpy().T * 0.5
    for scaled_at_rank in (False, True):
        assert [name for name in lowered(update(scaled_at_rank)) if name != "transpose"] == ["lora"]
        np.testing.assert_allclose(update(scaled_at_rank).eval().numpy(), want, rtol=0, atol=1e-5)
    added = LazyTensor.from_tensor(base) + update(False)
    assert [name for name in lowered(added) if name != "transpose"] == ["add_lora"]
    np.testing.assert_allclose(added.eval().numpy(), base.numpy() + want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [64.0, 1 / 64, -64.0])
@pytest.mark.parametrize("at_rank", [False, True], ids=["scaled last", "scaled at rank"])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
def test_float16_stays_in_range_where_it_was(scale: float, at_rank: bool, added: bool) -> None:
    """Products of up to 30000 at rank, and cotangents of up to 1000: finite as spelled, so finite as one operation."""
    rng = np.random.default_rng(1)
    large = 30000.0 if abs(scale) < 1 or not at_rank else 300.0
    x = Tensor(rng.uniform(0.5, 1, (3, 8)).astype(np.float32)).to_dtype("f16")
    a = Tensor((rng.uniform(0.5, 1, (8, 2)) * large / 8).astype(np.float32)).to_dtype("f16")
    b = Tensor((rng.uniform(0.5, 1, (2, 8)) / large).astype(np.float32)).to_dtype("f16")

    def results() -> list[np.ndarray[Any, Any]]:
        variables = [Var.from_tensor(each) for each in (x, a, b)]
        lx, la, lb = (LazyTensor.from_tensor(variable) for variable in variables)
        update = (lx @ la) * scale @ lb if at_rank else lx @ la @ lb * scale
        y = lx + update if added else update
        grads = (y * (1000.0 if abs(scale) < 1 else 4.0)).sum_all().backward()
        return [y.eval().to_dtype("f32").numpy(), *(grads[v].to_dtype("f32").numpy() for v in variables)]

    with features.disabled("rewrite"):
        spelled = results()
    for got, want in zip(results(), spelled):
        assert np.isfinite(got[np.isfinite(want)]).all()
        both = np.isfinite(want) & np.isfinite(got)
        # Three roundings of float16, 5e-4 each, of sums of positive terms.
        np.testing.assert_allclose(got[both], want[both], rtol=1e-2, atol=1e-3)
