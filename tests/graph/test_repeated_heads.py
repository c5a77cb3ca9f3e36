"""Heads of k and v that are joined, repeated or turned round: only those repeated in place are grouped heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import LazyTensor, Tensor, features

import numpy as np
import pytest

HEADS: dict[str, Callable[[Any], Any]] = {
    "each in place, broadcast": lambda x: x.unsqueeze(2).broadcast_as((x.dim(0), 2, 2, 7, 4)),
    "each in place, repeated": lambda x: x.unsqueeze(2).repeat((1, 1, 2, 1, 1)),
    "each in place, joined along s": lambda x: LazyTensor.cat([x, x], 2),
    "all in front, broadcast": lambda x: x.broadcast_as((2, x.dim(0), 2, 7, 4)),
    "all in front, repeated": lambda x: x.repeat((2, 1, 1, 1, 1)),
    "all before the heads, broadcast": lambda x: x.unsqueeze(1).broadcast_as((x.dim(0), 2, 2, 7, 4)),
    "all before the heads, repeated": lambda x: x.unsqueeze(1).repeat((1, 2, 1, 1, 1)),
    "all joined": lambda x: LazyTensor.cat([x, x], 1),
    "turned round, broadcast": lambda x: x[:, ::-1, None].broadcast_as((x.dim(0), 2, 2, 7, 4)),
    "positions turned round, repeated": lambda x: x[:, :, None, ::-1].repeat((1, 1, 2, 1, 1)),
    "different ones joined": lambda x: LazyTensor.cat([x, x * 2.0], 2),
}


@pytest.mark.parametrize("many", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("b", [1, 2])
def test_attention_is_the_same(many: Callable[[Any], Any], b: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (
        Tensor(rng.uniform(-2, 2, shape).astype(np.float32)) for shape in ((b, 4, 5, 4), (b, 2, 7, 4), (b, 2, 7, 4))
    )

    def attended() -> np.ndarray[Any, Any]:
        lq, lk, lv = (LazyTensor.from_tensor(each) for each in (q, k, v))
        keys, values = (many(each).reshape((b, 4, 7, 4)) for each in (lk, lv))
        return ((lq @ keys.t()).softmax(-1) @ values).numpy()

    with features.disabled("rewrite"):
        want = attended()
    # Weighted means of values up to 4: a few roundings of float32.
    np.testing.assert_allclose(attended(), want, rtol=0, atol=1e-5)
