"""Arguments of wrong types: one line that names the function, the argument and what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, nn
from metal_candle.nn import attention, encoding, init, kv_cache, loss, ops, rotary_emb, sampling

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
    "a bias or none": (
        lambda: nn.linear_b(2, 2, "no", vb()),  # type: ignore[arg-type]
        "linear_b: got 'no' for bias; takes True or False",
    ),
    "layer norm's bias": (
        lambda: nn.layer_norm(2, nn.LayerNormConfig(affine=0), vb()),  # type: ignore[arg-type]
        "layer_norm: got 0 for affine; takes True or False",
    ),
    "layer norm's mean": (
        lambda: nn.layer_norm(2, nn.LayerNormConfig(remove_mean="no"), vb()),  # type: ignore[arg-type]
        "layer_norm: got 'no' for remove_mean; takes True or False",
    ),
    "batch norm's bias": (
        lambda: nn.batch_norm(2, nn.BatchNormConfig(affine=None), vb()),  # type: ignore[arg-type]
        "batch_norm: got None for affine; takes True or False",
    ),
    "batch norm's mean": (
        lambda: nn.batch_norm(2, nn.BatchNormConfig(remove_mean=1), vb()),  # type: ignore[arg-type]
        "batch_norm: got 1 for remove_mean; takes True or False",
    ),
    "layer": (
        lambda: nn.lstm(2, 2, nn.LSTMConfig(layer_idx=-1), vb()),
        "lstm: got layer_idx -1; takes 0 or more",
    ),
    "part of a layer": (
        lambda: nn.lstm(2, 2, nn.LSTMConfig(layer_idx="0"), vb()),  # type: ignore[arg-type]
        "lstm: got layer_idx '0'; takes an integer",
    ),
    "file to load": (
        lambda: nn.SGD([], 0.1).load(None),  # type: ignore[arg-type]
        "load: got None; takes a path",
    ),
    "file to save": (
        lambda: nn.SGD([], 0.1).save(None),  # type: ignore[arg-type]
        "got NoneType; takes a path",
    ),
    "a lazy tensor's weight": (
        lambda: ops.rms_norm(LazyTensor.from_tensor(X), [1.0], 1e-5),  # type: ignore[arg-type]
        "operand: got a list; takes a tensor",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_argument_is_named(case: str) -> None:
    call, want = CASES[case]
    with pytest.raises(mc.Error) as told:
        call()
    assert want in str(told.value)
    assert "\n" not in str(told.value)


# Each is called with what is no tensor; the words between "got" and that are the argument's name, of one alone none.
CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "softmax": (lambda x: ops.softmax(x, -1), ""),
    "softmax_last_dim": (ops.softmax_last_dim, ""),
    "log_softmax": (lambda x: ops.log_softmax(x, -1), ""),
    "silu": (ops.silu, ""),
    "sigmoid": (ops.sigmoid, ""),
    "hard_sigmoid": (ops.hard_sigmoid, ""),
    "mish": (ops.mish, ""),
    "leaky_relu": (lambda x: ops.leaky_relu(x, 0.1), ""),
    "selu": (lambda x: ops.selu(x, 1.0, 1.0), ""),
    "swiglu": (ops.swiglu, ""),
    "silu_mul": (lambda x: ops.silu_mul(x, W), "gate"),
    "rms_norm": (lambda x: ops.rms_norm(x, W, 1e-5), "xs"),
    "layer_norm": (lambda x: ops.layer_norm(x, W, W, 1e-5), "xs"),
    "rms_norm_slow": (lambda x: ops.rms_norm_slow(x, W, 1e-5), "xs"),
    "layer_norm_slow": (lambda x: ops.layer_norm_slow(x, W, W, 1e-5), "xs"),
    "softcap": (lambda x: ops.softcap(x, 1.0), ""),
    "dropout": (lambda x: ops.dropout(x, 0.0), ""),
    "pixel_shuffle": (lambda x: ops.pixel_shuffle(x, 2), ""),
    "pixel_unshuffle": (lambda x: ops.pixel_unshuffle(x, 2), ""),
    "replication_pad2d": (lambda x: ops.replication_pad2d(x, 0), ""),
    "sdpa": (lambda x: ops.sdpa(x, X, X), "q"),
    "sdpa, keys": (lambda x: ops.sdpa(X, x, X), "k"),
    "sdpa, capped": (lambda x: ops.sdpa(X, X, x, softcapping=2.0), "v"),
    "flash_attn": (lambda x: attention.flash_attn(x, X, X, 1.0), "q"),
    "flash_attn, values": (lambda x: attention.flash_attn(X, X, x, 1.0), "v"),
    "rope": (lambda x: rotary_emb.rope(x, W, W), "xs"),
    "rope, cosines": (lambda x: rotary_emb.rope(X, x, W), "cos"),
    "rope_i": (lambda x: rotary_emb.rope_i(x, W, W), "xs"),
    "rope_thd": (lambda x: rotary_emb.rope_thd(x, W, W), "xs"),
    "rope_slow": (lambda x: rotary_emb.rope_slow(x, W, W), "xs"),
    "rope_i_slow": (lambda x: rotary_emb.rope_i_slow(x, W, W), "xs"),
    "gumbel_softmax": (lambda x: sampling.gumbel_softmax(x, 1.0, -1), ""),
    "one_hot": (lambda x: encoding.one_hot(x, 2, 1.0, 0.0), ""),
    "append, keys": (lambda x: kv_cache.ConcatKvCache(1).append(x, X), "keys"),
    "append, values": (lambda x: kv_cache.ConcatKvCache(1).append(X, x), "values"),
    "linear": (nn.Linear, "weight"),
    "linear, bias": (lambda x: nn.Linear(W, x), "bias"),
    "embedding": (lambda x: nn.Embedding(x, 4), "embeddings"),
    "layer_norm, layer": (lambda x: nn.LayerNorm(x, None, 1e-5), "weight"),
    "layer_norm, bias": (lambda x: nn.LayerNorm(W, x, 1e-5), "bias"),
    "rms_norm, layer": (lambda x: nn.RmsNorm(x, 1e-5), "weight"),
    "group_norm": (lambda x: nn.GroupNorm(x, W, 4, 2, 1e-5), "weight"),
    "group_norm, bias": (lambda x: nn.GroupNorm(W, x, 4, 2, 1e-5), "bias"),
    "batch_norm": (lambda x: nn.BatchNorm(4, x, W, W, W, 1e-5), "running_mean"),
    "batch_norm, weight": (lambda x: nn.BatchNorm(4, W, W, x, W, 1e-5), "weight"),
    "Conv1d": (nn.Conv1d, "weight"),
    "Conv2d": (lambda x: nn.Conv2d(W, x), "bias"),
    "ConvTranspose1d": (nn.ConvTranspose1d, "weight"),
    "ConvTranspose2d": (nn.ConvTranspose2d, "weight"),
}


@pytest.mark.parametrize("case", CALLS)
def test_what_is_no_tensor_is_named(case: str) -> None:
    call, argument = CALLS[case]
    for given, got in ((np.ones((4,), np.float32), "an ndarray"), ([1.0], "a list"), (None, "None")):
        if given is None and argument == "bias" and "group" not in case:
            continue  # there is none
        with pytest.raises(mc.ArgumentTypeError) as told:
            call(given)
        name = f"{argument} " if argument else ""
        assert str(told.value) == f"{case.partition(',')[0]}: got {name}{got}; takes a tensor"


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
        ("nll", (Tensor.ones((16, 4)),)),
        ("cross_entropy", (X.narrow(0, 0, 1).reshape((16, 4)),)),
        ("linear_cross_entropy", (Tensor.ones((16, 4)), Tensor.ones((4, 4)))),
    ):
        with pytest.raises(mc.InvalidIndexError, match=rf"^{name}: index 9 is out of range; takes 0..3$"):
            getattr(loss, name)(*given, Tensor.full(9, (16,), dtype="i64"))


def test_caches_and_states_are_shown_in_a_line() -> None:
    held = Tensor.ones((1, 2, 3, 4))
    full, last, joined = kv_cache.KvCache(2, 8), kv_cache.RotatingKvCache(2, 2), kv_cache.ConcatKvCache(2)
    for cache in (full, last, joined):
        cache.append(held, held)
    one = "Cache(dim=2, current_seq_len=3, max_seq_len=8)"
    assert repr(full) == f"KvCache(k={one}, v={one})"
    one = "RotatingCache(dim=2, current_seq_len=3, max_seq_len=2)"
    assert repr(last) == f"RotatingKvCache(k={one}, v={one})"
    assert repr(joined) == "ConcatKvCache(dim=2, current_seq_len=3)"
    builder = kv_cache.ScatteredCacheBuilder(2, 5, "f32", "cpu")
    assert repr(builder) == "ScatteredCacheBuilder(batch_size=2, context=5)"
    assert repr(builder.make_cache(3, 4)) == "ScatteredKvCache([2, 3, 5, 4] f32)"
    long, gated = nn.lstm(4, 6, nn.LSTMConfig(), vb()), nn.gru(4, 6, nn.GRUConfig(), vb())
    assert repr(long.zero_state(2)) == "LSTMState(h [2, 6] f32, c [2, 6] f32)"
    assert repr(long.seq(Tensor.ones((2, 3, 4)))[1]) == "LSTMState(h [2, 6] f32, c [2, 6] f32)"
    assert repr(gated.seq(Tensor.ones((2, 3, 4)))[1]) == "GRUState(h [2, 6] f32)"


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
