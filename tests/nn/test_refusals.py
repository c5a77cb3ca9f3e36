"""Arguments of wrong types: one line that names the function, the argument and what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import Tensor, Var, nn
from metal_candle.nn import init, loss, ops

import numpy as np
import pytest

X, W = Tensor.ones((2, 4, 4, 4)), Tensor.ones((4,))
IDS = Tensor.new([0, 1])


def vb() -> nn.VarBuilder:
    return nn.VarBuilder.from_varmap(nn.VarMap(), "f32", "cpu")


def group_norm(groups: Any, channels: Any = 4) -> Any:
    return nn.GroupNorm(W, W, channels, groups, 1e-5)


def kaiming(*given: Any) -> Any:
    return init.Init.Kaiming(*given)


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "groups": (lambda: group_norm("2"), "group_norm: got num_groups '2'; takes an integer"),
    "part of a group": (lambda: group_norm(2.0), "group_norm: got num_groups 2.0; takes an integer"),
    "channels": (lambda: group_norm(2, None), "group_norm: got num_channels None; takes an integer"),
    "channels in": (
        lambda: nn.conv1d(None, 4, 3, nn.Conv1dConfig(), vb()),  # type: ignore[arg-type]
        "conv: got in_channels None; takes an integer",
    ),
    "channels out": (
        lambda: nn.conv2d(4, "4", 3, nn.Conv2dConfig(), vb()),  # type: ignore[arg-type]
        "conv: got out_channels '4'; takes an integer",
    ),
    "a negative kernel": (
        lambda: nn.conv_transpose1d(4, 4, -1, nn.ConvTranspose1dConfig(), vb()),
        "conv: got kernel_size -1; takes 0 or more",
    ),
    "convolution's groups": (
        lambda: nn.conv1d(4, 4, 3, nn.Conv1dConfig(groups="2"), vb()),  # type: ignore[arg-type]
        "conv: got groups '2'; takes an integer",
    ),
    # What is no distribution was once the uniform one.
    "distribution": (
        lambda: kaiming("normal", nn.FanInOut.FanIn, nn.NonLinearity.ReLU),
        "kaiming: got dist 'normal'; takes a NormalOrUniform",
    ),
    "fan": (
        lambda: kaiming(nn.NormalOrUniform.Normal, "fan_in", nn.NonLinearity.ReLU),
        "kaiming: got fan 'fan_in'; takes a FanInOut",
    ),
    "what follows": (
        lambda: kaiming(nn.NormalOrUniform.Normal, nn.FanInOut.FanIn, 2.0),
        "kaiming: got non_linearity 2.0; takes a NonLinearity",
    ),
    "gain": (lambda: nn.NonLinearity.ExplicitGain("2"), "ExplicitGain: got '2' for gain; takes a number"),  # type: ignore[arg-type]
    "rms_norm": (lambda: ops.rms_norm(X, W, b"x"), "rms_norm: got b'x' for eps; takes a number"),  # type: ignore[arg-type]
    "layer_norm": (lambda: ops.layer_norm(X, W, W, True), "layer_norm: got True for eps; takes a number"),
    "rms_norm_slow": (
        lambda: ops.rms_norm_slow(X, W, X),  # type: ignore[arg-type]
        "rms_norm_slow: got a Tensor for eps; takes a number",
    ),
    "scale": (lambda: ops.sdpa(X, X, X, scale=b"x"), "sdpa: got b'x' for scale; takes a number"),  # type: ignore[arg-type]
    "causal": (
        lambda: ops.sdpa(X, X, X, None, "no"),  # type: ignore[arg-type]
        "sdpa: got 'no' for do_causal; takes True or False",
    ),
    "mode": (lambda: nn.seq().train("off"), "train: got 'off' for mode; takes True or False"),  # type: ignore[arg-type]
    "function": (lambda: nn.seq().add_fn(2), "func: got 2; takes a function"),  # type: ignore[arg-type]
    "function of the mode": (lambda: nn.func_t(None), "func_t: got None; takes a function"),  # type: ignore[arg-type]
    "steps": (
        lambda: nn.Muon([], nn.ParamsMuon(0.1, ns_steps=math.inf)),  # type: ignore[arg-type]
        "Muon: ns_steps is inf; takes a whole number from 1",
    ),
    "limit": (lambda: nn.clip_factor(Tensor.new(1.0), "2"), "clip_factor: got '2' for max_norm; takes a number"),  # type: ignore[arg-type]
    "norm": (lambda: nn.clip_factor(2.0, 1.0), "clip_factor: got norm 2.0; takes a tensor, as global_norm gives"),  # type: ignore[arg-type]
    "experts": (
        lambda: nn.moe.moe_gemm(Tensor.ones((2, 4)), Tensor.ones((2, 3, 4)), None, IDS, IDS, 1.0, True),  # type: ignore[arg-type]
        "moe_gemm: got topk 1.0; takes an integer",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_argument_is_named(case: str) -> None:
    call, want = CASES[case]
    with pytest.raises(mc.Error) as told:
        call()
    assert want in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["nll", "cross_entropy", "mse", "binary_cross_entropy_with_logit"])
def test_losses_take_tensors(name: str) -> None:
    with pytest.raises(mc.ArgumentTypeError, match=rf"^{name}: got inp an ndarray; takes a tensor$"):
        getattr(loss, name)(np.ones((2, 3), np.float32), IDS)


def test_a_vocabulary_head_takes_tensors() -> None:
    x: Any = [1.0]
    for name, given in (("hidden", (x, W, IDS)), ("weight", (W, x, IDS))):
        with pytest.raises(mc.ArgumentTypeError, match=rf"^linear_cross_entropy: got {name} a list; takes a tensor$"):
            loss.linear_cross_entropy(*given)


def test_no_limit_changes_no_gradient() -> None:
    """The squares of these add up to more than a float holds; 0 times the limit would be no number."""
    v, given = Var.zeros((2,)), Tensor.new([1e30, 1e30])
    assert nn.SGD([v], 1.0).step({v: given}, max_norm=math.inf).to_scalar() == math.inf  # type: ignore[union-attr]
    assert v.to_vec1() == [-x for x in given.to_vec1()]
    grads = {v: given}
    assert nn.clip_grad_norm(grads, math.inf).to_scalar() == math.inf
    assert grads[v].to_vec1() == given.to_vec1()
    assert nn.clip_factor(Tensor.new(math.inf), math.inf).to_scalar() == 1.0


def test_ids_outside_are_told_by_the_losss_own_name() -> None:
    for name, given in (
        ("cross_entropy", (X.narrow(0, 0, 1).reshape((16, 4)),)),
        ("linear_cross_entropy", (Tensor.ones((16, 4)), Tensor.ones((4, 4)))),
    ):
        with pytest.raises(mc.InvalidIndexError, match=rf"^{name}: index 9 is out of range; takes 0..3$"):
            getattr(loss, name)(*given, Tensor.full(9, (16,), dtype="i64"))


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), float("inf")])
def test_norms_take_an_eps_from_0(eps: float) -> None:
    zeros = nn.VarBuilder.zeros("f32")
    for name, make in {
        "layer_norm": lambda: nn.layer_norm(2, eps, zeros),
        "rms_norm": lambda: nn.rms_norm(2, eps, zeros),
        "group_norm": lambda: nn.group_norm(1, 2, eps, zeros),
        "batch_norm": lambda: nn.batch_norm(2, eps, zeros),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: got {eps} for eps; takes a finite number from 0$"):
            make()
