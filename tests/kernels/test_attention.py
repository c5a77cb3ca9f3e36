"""Attention: masks, what is saved, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import Error
from metal_candle.kernels import attention as module
from metal_candle.kernels.attention import attention
from metal_candle.kernels.kernel import on_cpu

import mlx.core as mx
import numpy as np
import pytest

SCALE = 0.25
cpu_only = pytest.mark.skipif(not on_cpu(), reason="blocks of queries are the CPU's variant")


def heads(count: int, length: int, key: int, batch: int = 2) -> mx.array:
    return mx.random.normal((batch, count, length, 16), key=mx.random.key(key))


def near(got: mx.array, want: mx.array) -> None:
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("length", [9, 150])
@pytest.mark.parametrize("shape", ["(t,s)", "(b,1,t,s)", "(h,1,s)", "boolean"])
def test_array_masks(length: int, shape: str) -> None:
    q, k, v = heads(6, length, 0), heads(2, length + 3, 1), heads(2, length + 3, 2)
    sizes = {
        "(t,s)": (length, length + 3),
        "(b,1,t,s)": (2, 1, length, length + 3),
        "(h,1,s)": (6, 1, length + 3),
        "boolean": (length, length + 3),
    }[shape]
    mask = mx.random.normal(sizes, key=mx.random.key(3))
    if shape == "boolean":
        mask = mask > -1
    cotangent = heads(6, length, 4)
    want, gradients = mx.vjp(lambda *x: attention.reference(*x, SCALE, mask), [q, k, v], [cotangent])
    outputs = attention.forward(q, k, v, SCALE, mask)
    near(outputs[0], want[0])
    got = attention.vjp(cotangent, (q, k, v), outputs, (True,) * 3, SCALE, mask)
    for a, b in zip(got, gradients):
        near(a, b)


def test_gradient_of_a_mask() -> None:
    q, k, v = heads(4, 100, 0), heads(2, 100, 1), heads(2, 100, 2)
    mask = mx.random.normal((4, 1, 100), key=mx.random.key(3))
    ours, plain = (
        mx.grad(lambda m, f=f: (f(q, k, v, SCALE, m) * v[:, :1]).sum())(mask) for f in (attention, attention.reference)
    )
    near(ours, plain)


@pytest.mark.parametrize("length", [9, 150])
def test_a_query_that_sees_nothing_passes_nothing_on(length: int) -> None:
    q, k, v = heads(4, length, 0), heads(2, length, 1), heads(2, length, 2)
    mask = mx.array(np.tril(np.ones((length, length), bool), -1))  # the first query sees no key
    cotangent = mx.array(np.arange(length) > 0)[:, None] * heads(4, length, 3)
    for function in (attention, attention.reference):
        _, (of_q, of_k, of_v) = mx.vjp(lambda *x, f=function: f(*x, SCALE, mask), [q, k, v], [cotangent])
        assert np.all(np.isfinite(np.array(of_q)))
        assert np.all(np.isfinite(np.array(of_k)))
        # 0 times the weights of that row, which are NaN, as softmax(...) @ v has it.
        assert np.all(np.isnan(np.array(of_v)))


@cpu_only
def test_the_powers_are_recomputed_above_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = heads(6, 200, 0), heads(2, 200, 1), heads(2, 200, 2)
    saved = attention.forward(q, k, v, SCALE, "causal")
    monkeypatch.setattr(module, "SAVED", 1000)
    alone = attention.forward(q, k, v, SCALE, "causal")
    assert len(alone) == 1 < len(saved)
    for a, b in zip(
        *(attention.vjp(q, (q, k, v), outputs, (True,) * 3, SCALE, "causal") for outputs in (saved, alone))
    ):
        near(a, b)


@cpu_only
def test_only_a_block_of_scores_exists_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVED", 0)
    q, k, v = (heads(2, 4096, i, batch=1) for i in range(3))
    mx.eval(q, k, v)

    def peak(gradients: Callable[[], object]) -> int:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(gradients())
        return mx.get_peak_memory() - before

    outputs = attention.forward(q, k, v, SCALE, "causal")
    blocks = peak(lambda: attention.vjp(q, (q, k, v), outputs, (True,) * 3, SCALE, "causal"))
    plain = peak(lambda: mx.vjp(lambda *x: attention.reference(*x, SCALE, "causal"), [q, k, v], [q])[1])
    # All scores are 128 MiB, those of a block 2 MiB; how far MLX allocates ahead depends on the machine's load.
    assert blocks < 0.5 * plain


def test_more_queries_than_keys() -> None:
    q, k, v = heads(2, 12, 0), heads(2, 5, 1), heads(2, 5, 2)
    got, want = attention(q, k, v, SCALE, "causal"), attention.reference(q, k, v, SCALE, "causal")
    np.testing.assert_allclose(np.array(got)[:, :, 7:], np.array(want)[:, :, 7:], rtol=2e-5, atol=5e-6)
    # The first seven queries see no key.
    assert np.isnan(np.array(attention.reference(q, k, v, SCALE, "causal"))[:, :, :7]).all()


@pytest.mark.parametrize("bad", [(2, 5, 3, 16), (3, 4, 3, 16), (2, 2, 3, 8)])
def test_shapes_that_do_not_fit(bad: tuple[int, ...]) -> None:
    with pytest.raises(Error, match=r"attention: .* takes q \(b, h, t, d\)"):
        attention(heads(4, 3, 0), mx.zeros(bad), mx.zeros(bad), SCALE, None)


@cpu_only
@pytest.mark.parametrize(
    "mask",
    [None, "causal", (5, 1, 70, 70), (5, 1, 1, 70), (1, 4, 70, 70), (70, 70)],
    ids=str,
)
def test_a_large_batch_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch, mask: Any) -> None:
    q, k, v, cotangent = (mx.random.normal((5, n, 70, 8), key=mx.random.key(n)) for n in (4, 2, 2, 4))
    given = [mx.random.normal(mask, key=mx.random.key(9))] if isinstance(mask, tuple) else [mask]
    needs = (True,) * (4 if isinstance(mask, tuple) else 3)

    def both() -> list[mx.array]:
        outputs = attention.forward(q, k, v, 0.3, *given)
        of_all = attention.vjp(cotangent, (q, k, v), outputs, needs, 0.3, *given)
        of_result = attention.vjp(cotangent, (q, k, v), outputs[:1], needs, 0.3, *given)
        return [x for x in (outputs[0], *of_all, *of_result) if x is not None]

    whole = both()
    assert len(module._parts(q, 70, given[0])) == 1
    monkeypatch.setattr(module, "SCORES", 2 * 4 * 64 * 70)
    assert [len(range(5)[rows]) for rows in module._parts(q, 70, given[0])] == [2, 2, 1]
    for got, want in zip(both(), whole, strict=True):
        # Of smaller parts other blocks of queries, so that sums are in another order.
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-5, atol=1e-5)
