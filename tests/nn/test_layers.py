"""Layers and functions of ``nn``: values against NumPy, kinds of tensors, gradients, errors."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, nn
from metal_candle.nn import ops
from metal_candle.nn.kv_cache import ConcatKvCache

import numpy as np
import pytest
from tolerance import VALUE, assert_near

RNG = np.random.default_rng(0)
F32 = VALUE[mc.DType.F32]
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


@KINDS
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4)])
def test_linear(kind: Any, shape: tuple[int, ...]) -> None:
    x, weight, bias = normal(*shape), normal(3, 4), normal(3)
    layer, without = nn.Linear(Tensor(weight), Tensor(bias)), nn.Linear(Tensor(weight))
    assert_near(layer(kind.new(x)).numpy(), x @ weight.T + bias, F32)
    assert_near(without.forward(kind.new(x)).numpy(), x @ weight.T, F32)
    assert isinstance(layer.forward(kind.new(x)), kind)
    assert (without.bias(), layer.weight().dims()) == (None, [3, 4])


def test_linear_refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"linear: got shapes \(2, 5\) and \(3, 4\); takes \(…, in\) and weight"):
        nn.Linear(Tensor(normal(3, 4))).forward(LazyTensor.new(normal(2, 5)))
    with pytest.raises(TypeError, match="linear: dtypes differ, lhs f16, rhs f32"):
        nn.Linear(Tensor(normal(3, 4))).forward(Tensor(normal(2, 4)).to_dtype("f16"))


@KINDS
def test_embedding(kind: Any) -> None:
    table = normal(7, 3)
    layer = nn.Embedding(Tensor(table), 3)
    ids = [[0, 6], [3, 3]]
    assert_near(layer(kind.new(ids)).numpy(), table[ids], F32)
    assert (layer.hidden_size(), layer.embeddings().dims()) == (3, [7, 3])
    with pytest.raises(IndexError, match=r"embedding: index 7 is out of range; takes 0\.\.6"):
        layer(kind.new([7])).numpy()
    with pytest.raises(TypeError, match="embedding: got dtype f32; takes ids"):
        layer(kind.new([1.0]))


@KINDS
def test_rms_norm(kind: Any) -> None:
    x, weight = normal(2, 5, 8), normal(8)
    layer = nn.RmsNorm(Tensor(weight), 1e-6)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
    assert_near(layer(kind.new(x)).numpy(), want, F32)
    assert_near(ops.rms_norm(kind.new(x), Tensor(weight), 1e-6).numpy(), want, F32)
    assert (layer.eps(), layer.weight().dims()) == (1e-6, [8])


@KINDS
def test_functions(kind: Any) -> None:
    x = normal(3, 6)
    e = np.exp(x.astype(np.float64))
    softmax = e / e.sum(-1, keepdims=True)
    sigmoid = 1 / (1 + 1 / e)
    for got, want in [
        (ops.softmax_last_dim(kind.new(x)), softmax),
        (ops.softmax(kind.new(x), 0), e / e.sum(0)),
        (ops.log_softmax(kind.new(x), -1), np.log(softmax)),
        (ops.silu(kind.new(x)), x * sigmoid),
        (ops.sigmoid(kind.new(x)), sigmoid),
        (ops.swiglu(kind.new(x)), (x * sigmoid)[:, :3] * x[:, 3:]),
        (ops.silu_mul(kind.new(x), kind.new(x)), x * sigmoid * x),
    ]:
        assert isinstance(got, kind)
        assert_near(got.numpy(), want, F32)


def test_attention_with_a_mask() -> None:
    q, k, v = normal(1, 4, 3, 8), normal(1, 2, 5, 8), normal(1, 2, 5, 8)
    mask = np.where(RNG.random((1, 1, 3, 5)) < 0.3, -1e4, 0).astype(np.float32)
    scores = 0.25 * q @ np.repeat(k, 2, 1).swapaxes(-1, -2) + mask
    e = np.exp(scores - scores.max(-1, keepdims=True))
    want = e / e.sum(-1, keepdims=True) @ np.repeat(v, 2, 1)
    variables = [Var(x) for x in (q, k, v)]
    got = ops.sdpa(*variables, mask=Tensor(mask), scale=0.25)
    assert_near(got.numpy(), want, F32)
    grads = got.backward()
    assert [grads[x].dims() for x in variables] == [x.dims() for x in variables]


def test_attention_refuses() -> None:
    q, k = Tensor(normal(1, 4, 3, 8)), Tensor(normal(1, 3, 5, 8))
    with pytest.raises(ValueError, match=r"sdpa: got shapes \(1, 4, 3, 8\) and \(1, 3, 5, 8\); takes q"):
        ops.sdpa(q, k, k)
    with pytest.raises(ValueError, match="sdpa: got a mask and do_causal; takes one of them"):
        ops.sdpa(q, q, q, mask=Tensor(normal(1, 1, 3, 3)), do_causal=True)
    with pytest.raises(ValueError, match=r"rope: got shapes \(1, 4, 3, 8\) and \(3, 3\)"):
        ops.rope(q, Tensor(normal(3, 3)), Tensor(normal(3, 3)))


@KINDS
def test_sequential(kind: Any) -> None:
    weight = normal(3, 3)
    model = nn.seq()
    assert model.is_empty()
    model = model.add(nn.Linear(Tensor(weight))).add_fn(lambda xs: xs.relu()).add(nn.Func(lambda xs: xs * 2.0))
    x = normal(2, 3)
    first = x @ weight.T
    assert_near(model(kind.new(x)).numpy(), 2 * np.maximum(first, 0), F32)
    outputs = model.forward_all(kind.new(x))
    assert [out.dims() for out in outputs] == [[2, 3]] * 3
    assert_near(outputs[0].numpy(), first, F32)
    assert (len(model), len(list(model)), model.is_empty()) == (3, 3, False)


@KINDS
def test_the_cache_of_keys_and_values_grows(kind: Any) -> None:
    cache = ConcatKvCache(2)
    assert cache.is_empty()
    assert cache.current_seq_len() == 0
    parts = [normal(1, 2, t, 4) for t in (3, 1, 2)]
    for i, part in enumerate(parts):
        k, v = cache.append(kind.new(part), kind.new(-part))
        want = np.concatenate(parts[: i + 1], 2)
        np.testing.assert_array_equal(k.numpy(), want)
        np.testing.assert_array_equal(v.numpy(), -want)
    assert (cache.current_seq_len(), cache.dim()) == (6, 2)
    assert cache.k().dims() == cache.v().dims() == [1, 2, 6, 4]
    with pytest.raises(
        ValueError, match=r"kv cache: got keys \[2, 2, 1, 4\] after \[1, 2, 6, 4\]; takes the same batch"
    ):
        cache.append(kind.new(normal(2, 2, 1, 4)), kind.new(normal(2, 2, 1, 4)))
    cache.reset()
    assert cache.is_empty()
