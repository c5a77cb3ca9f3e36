"""A Llama block and its loss, spelled out in plain tensor operations as candle's and Hugging Face's examples do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.graph.plans import apply_rules
from metal_candle.graph.rewrite import Log
from metal_candle.graph.structure import survey
from metal_candle.graph.term import terms_of

import numpy as np
import pytest

B, T, H, KV, D, WORDS = 2, 7, 4, 2, 6, 19
WIDTH, INNER = H * D, 40
WEIGHTS: dict[str, tuple[int, ...]] = {
    "norm1": (WIDTH,),
    "q": (WIDTH, WIDTH),
    "k": (KV * D, WIDTH),
    "v": (KV * D, WIDTH),
    "o": (WIDTH, WIDTH),
    "norm2": (WIDTH,),
    "gate": (INNER, WIDTH),
    "up": (INNER, WIDTH),
    "down": (WIDTH, INNER),
    "head": (WORDS, WIDTH),
}


def rms_norm(x: Any, weight: Any) -> Any:
    wide = x.to_dtype("f64" if str(x.dtype) == "f64" else "f32")
    normed = wide.broadcast_div((wide.sqr().mean_keepdim(-1) + 1e-5).sqrt())
    return normed.to_dtype(x.dtype).broadcast_mul(weight)


def rotate_half(x: Any) -> Any:
    half = x.dim(-1) // 2
    return LazyTensor.cat([x.narrow(-1, half, half).neg(), x.narrow(-1, 0, half)], -1)


def rope(x: Any, cos: Any, sin: Any) -> Any:
    cos, sin = (LazyTensor.cat([t, t], -1).narrow(0, 0, x.dim(2)).unsqueeze(0).unsqueeze(0) for t in (cos, sin))
    return x.broadcast_mul(cos) + rotate_half(x).broadcast_mul(sin)


def repeat_kv(x: Any) -> Any:
    b, _, s, d = x.dims4()
    return LazyTensor.cat([x] * (H // KV), 2).reshape((b, H, s, d))


def candle_attention(q: Any, k: Any, v: Any) -> Any:
    """Scores in float32, later keys filled with -inf."""
    mask = LazyTensor.new(np.triu(np.ones((T, T), np.uint8), 1)).broadcast_as((B, H, T, T))
    back, wide = q.dtype, "f64" if str(q.dtype) == "f64" else "f32"
    q, k, v = (x.to_dtype(wide) for x in (q, repeat_kv(k), repeat_kv(v)))
    scores = q.matmul(k.t()) / math.sqrt(D)
    below = LazyTensor.new(-math.inf).to_dtype(wide).broadcast_as(scores.shape)
    return mask.where_cond(below, scores).softmax(-1).matmul(v.contiguous()).to_dtype(back)


def torch_attention(q: Any, k: Any, v: Any) -> Any:
    """A mask that is added; only the softmax in float32."""
    lowest = -6e4 if str(q.dtype) == "f16" else -3e38
    mask = LazyTensor.new(np.triu(np.full((1, 1, T, T), lowest, np.float32), 1)).to_dtype(q.dtype)
    weights = q @ repeat_kv(k).transpose(2, 3) * (1 / math.sqrt(D)) + mask
    wide = "f64" if str(q.dtype) == "f64" else "f32"
    return weights.to_dtype(wide).softmax(-1).to_dtype(q.dtype) @ repeat_kv(v)


def loss(attention: Callable[..., Any], x: Any, w: dict[str, Any], cos: Any, sin: Any, target: Any) -> Any:
    def heads(name: str, n: int) -> Any:
        return (normed @ w[name].t()).reshape((B, T, n, D)).transpose(1, 2)

    normed = rms_norm(x, w["norm1"])
    q, k = rope(heads("q", H).contiguous(), cos, sin), rope(heads("k", KV).contiguous(), cos, sin)
    attended = attention(q, k, heads("v", KV).contiguous()).transpose(1, 2).reshape((B, T, WIDTH))
    x = x + attended @ w["o"].t()
    normed = rms_norm(x, w["norm2"])
    x = x + ((normed @ w["gate"].t()).silu() * (normed @ w["up"].t())) @ w["down"].t()
    logits = (x @ w["head"].t()).reshape((B * T, WORDS))
    return logits.log_softmax(-1).gather(target.unsqueeze(1), 1).sum_all().affine(-1 / (B * T), 0.0)


def operands(dtype: str) -> tuple[Tensor, dict[str, Tensor], list[Tensor], Tensor]:
    rng = np.random.default_rng(0)
    weights = {
        name: Tensor((rng.uniform(-1, 1, shape) / math.sqrt(shape[-1])).astype(np.float32)).to_dtype(dtype)
        for name, shape in WEIGHTS.items()
    }
    x = Tensor(rng.uniform(-1, 1, (B, T, WIDTH)).astype(np.float32)).to_dtype(dtype)
    angles = np.arange(2 * T)[:, None] * 10000.0 ** -(np.arange(D // 2) / (D // 2))
    tables = [Tensor(f(angles).astype(np.float32)).to_dtype(dtype) for f in (np.cos, np.sin)]
    return x, weights, tables, Tensor(rng.integers(0, WORDS, B * T).astype(np.uint32))


def run(attention: Callable[..., Any], dtype: str, like: str) -> dict[str, np.ndarray[Any, Any]]:
    """The loss and its gradients, from operands that were rounded to the dtype ``like``."""
    x, weights, tables, target = operands(like)
    variables = {name: Var.from_tensor(tensor.to_dtype(dtype)) for name, tensor in {"x": x, **weights}.items()}
    lazy = {name: LazyTensor.from_tensor(variable) for name, variable in variables.items()}
    cos, sin = (LazyTensor.from_tensor(table.to_dtype(dtype)) for table in tables)
    value = loss(attention, lazy.pop("x"), lazy, cos, sin, LazyTensor.from_tensor(target))
    grads = value.backward()
    found = {"loss": value.eval(), **{name: grads[variable] for name, variable in variables.items()}}
    return {name: tensor.to_dtype("f64").numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    ("attention", "name"), [(candle_attention, "filled_sdpa"), (torch_attention, "sdpa")], ids=["candle", "torch"]
)
def test_what_is_computed(attention: Callable[..., Any], name: str, dtype: str) -> None:
    x, weights, tables, target = operands(dtype)
    lazy = {key: LazyTensor.from_tensor(tensor) for key, tensor in weights.items()}
    y = loss(
        attention,
        LazyTensor.from_tensor(x),
        lazy,
        *map(LazyTensor.from_tensor, tables),
        LazyTensor.from_tensor(target),
    )
    graph = apply_rules(terms_of(survey([y._node])), Log())
    names = [term.operation.name() for term in graph.order if term.operation]
    assert {each: names.count(each) for each in ("rope", name, "picked_log_softmax")} == {
        "rope": 2,
        name: 1,
        "picked_log_softmax": 1,
    }
    left = {"softmax", "log_softmax", "gather", "cat", "where_cond", "broadcast_as", "exp"} & set(names)
    assert not left


@pytest.mark.parametrize("attention", [candle_attention, torch_attention], ids=["candle", "torch"])
# The gradients are sums over 14 positions behind a dozen roundings of float32 6e-8, bfloat16 4e-3, float16 5e-4.
@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-5), ("bf16", 6e-2), ("f16", 8e-3)])
def test_the_loss_and_its_gradients(attention: Callable[..., Any], dtype: str, tolerance: float) -> None:
    found = run(attention, dtype, dtype)
    with features.disabled("rewrite"):
        expected = run(attention, "f64", dtype)
    for name, want in expected.items():
        scale = np.abs(want).max()
        np.testing.assert_allclose(found[name], want, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("attention", [candle_attention, torch_attention], ids=["candle", "torch"])
def test_halves_are_no_less_exact_than_spelled(attention: Callable[..., Any]) -> None:
    with features.disabled("rewrite"):
        expected, spelled = run(attention, "f64", "bf16"), run(attention, "bf16", "bf16")
    found = run(attention, "bf16", "bf16")

    def error(results: dict[str, np.ndarray[Any, Any]]) -> float:
        return sum(float(np.linalg.norm(results[n] - want) / np.linalg.norm(want)) for n, want in expected.items())

    # Fewer roundings, but each may fall the other way.
    assert error(found) < 1.1 * error(spelled)
