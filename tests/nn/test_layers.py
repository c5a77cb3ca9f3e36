"""Layers and functions of ``nn``: values against NumPy, kinds of tensors, gradients, errors."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, nn
from metal_candle.nn import ops

import numpy as np
import pytest
from tolerance import VALUE, assert_near

RNG = np.random.default_rng(0)
F32 = VALUE[mc.DType.F32]
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


@KINDS
def test_rms_norm(kind: Any) -> None:
    x, weight = normal(2, 5, 8), normal(8)
    layer = nn.RmsNorm(Tensor(weight), 1e-6)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
    assert_near(layer(kind.new(x)).numpy(), want, F32)
    assert_near(ops.rms_norm(kind.new(x), Tensor(weight), 1e-6).numpy(), want, F32)
    assert (layer.eps(), layer.weight().dims()) == (1e-6, [8])


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
