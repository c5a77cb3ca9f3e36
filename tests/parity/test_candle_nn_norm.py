"""Layer norm as candle's own binding computes it."""

from __future__ import annotations

from metal_candle import DType, Tensor, nn
from metal_candle.nn import ops

import numpy as np
import pytest
from both import KINDS, f32
from tolerance import VALUE, assert_near

candle_nn = pytest.importorskip("candle.nn", reason="candle's binding has no nn")


@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 1, 1), (4, 5, 123)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(shape: tuple[int, int, int], with_bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(size).astype(np.float32) for size in (shape, shape[-1], shape[-1]))
    x += 0.5
    theirs = candle_nn.LayerNorm(shape[-1], eps=1e-5, bias=with_bias)
    theirs.weight = f32(weight).theirs()
    if with_bias:
        theirs.bias = f32(bias).theirs()
    want = np.array(theirs(f32(x).theirs()).values())
    layer = nn.LayerNorm(Tensor(weight), Tensor(bias) if with_bias else None, 1e-5)
    zero = Tensor(bias if with_bias else np.zeros_like(bias))
    for kind in KINDS:
        # Sums of up to 123 elements in two orders.
        assert_near(layer(kind.new(x)).numpy(), want, VALUE[DType.F32])
        assert_near(ops.layer_norm_slow(kind.new(x), Tensor(weight), zero, 1e-5).numpy(), want, VALUE[DType.F32])
