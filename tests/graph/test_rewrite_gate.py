"""The gate in real code: a feed-forward block, values that are held, where spelling it out left the range."""

from __future__ import annotations

from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features

import numpy as np
import pytest
from rewriting import lowered


def lazy(*shape: int, seed: int = 0, dtype: str = "f32") -> LazyTensor:
    array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return LazyTensor.from_tensor(Tensor(array).to_dtype(dtype))


def feed_forward(x: LazyTensor, gate: LazyTensor, up: LazyTensor, down: LazyTensor) -> LazyTensor:
    """Hugging Face's LlamaMLP."""
    return ((x @ gate.t()).silu() * (x @ up.t())) @ down.t()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_a_feed_forward_block(dtype: str) -> None:
    x, gate = lazy(2, 3, 16, dtype=dtype), lazy(24, 16, seed=1, dtype=dtype)
    names = lowered(feed_forward(x, gate, lazy(24, 16, seed=2, dtype=dtype), lazy(16, 24, seed=3, dtype=dtype)))
    assert names.count("swiglu") == 1
    assert not {"silu", "mul"} & set(names)


def test_a_value_that_is_held_is_not_computed_twice() -> None:
    gate, up = lazy(5, 13), lazy(5, 13, seed=1)
    active = gate.silu()
    y = active * up
    assert lowered(y) == ["silu", "mul"]
    del active
    assert lowered(y) == ["swiglu"]


def test_two_results_share_one_gate() -> None:
    gate = lazy(5, 13)
    one, other = (gate.silu() * lazy(5, 13, seed=seed) for seed in (1, 2))
    assert lowered(one, other) == ["silu", "mul", "mul"]


def test_a_gate_that_is_cut_off_from_the_gradient_stays() -> None:
    gate = LazyTensor.from_tensor(Var(np.ones((5, 13), np.float32)))
    y = gate.silu().detach() * lazy(5, 13)
    assert lowered(y) == ["silu", "detach", "mul"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 200.0, 0.0, -0.0])
def test_extremes_stay_what_they_were(value: float) -> None:
    x = LazyTensor.new(np.array([value], np.float32))

    def forms() -> list[Any]:
        return [x * x.sigmoid(), x / (1 + (-x).exp()), (1 + (-x).exp()).recip()]

    assert [lowered(form) for form in forms()] == [["silu"], ["silu"], ["sigmoid"]]
    with features.disabled("rewrite"):
        plain = [form.numpy() for form in forms()]
    for got, want in zip(forms(), plain):
        np.testing.assert_allclose(got.numpy(), want, rtol=2e-6)


def test_the_gradient_where_exp_leaves_the_range_is_a_number() -> None:
    def gradient() -> float:
        x = Var(np.array([-100.0], np.float32))
        lazy_x = LazyTensor.from_tensor(x)
        return float((lazy_x / (1 + (-lazy_x).exp())).sum_all().backward()[x].numpy()[0])

    assert abs(gradient()) < 1e-30
    with features.disabled("rewrite"):
        assert np.isnan(gradient())


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_gradients_where_exp_of_a_large_gate_is_infinite(dtype: str) -> None:
    """A gate of -1000 is closed, one of 1000 open; so are their gradients, fused or not."""
    gate = Var.from_tensor(Tensor.new(np.array([-1e4, -1000.0, 0.0, 1000.0]), dtype=dtype))
    lazy = LazyTensor.from_tensor(gate)
    for off in ((), ("rewrite",)):
        with features.disabled(*off):
            for value in (lazy.silu() * 3.0, lazy * lazy.sigmoid() * 3.0, lazy.silu() * (lazy * 0.0 + 3.0)):
                found = value.sum_all().backward()[gate].to_dtype("f64").numpy()
                np.testing.assert_allclose(found, [0.0, 0.0, 1.5, 3.0], rtol=1e-6, atol=1e-12)
