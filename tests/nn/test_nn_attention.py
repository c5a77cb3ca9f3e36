"""``flash_attn`` and its masks, against softmax(scale · q · kᵀ + mask) · v written out for each query."""

from __future__ import annotations

import math
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor
from metal_candle.error import (
    ArgumentTypeError,
    ArgumentValueError,
    DTypeMismatchError,
    ShapeMismatchBinaryOpError,
    UnexpectedNumberOfDimsError,
)
from metal_candle.nn import attention
from metal_candle.nn.attention import AttnMask, flash_attn

import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from hypothesis import given, settings
from hypothesis import strategies as st

SCALE = 0.4
MASKS = [
    pytest.param(None, id="none"),
    pytest.param(AttnMask.None_, id="none_"),
    pytest.param(AttnMask.causal(), id="causal"),
    pytest.param(AttnMask.Causal(2), id="offset 2"),
    pytest.param(AttnMask.Causal(4), id="offset 4"),
    pytest.param(AttnMask.Causal(50), id="offset 50"),
]


def by_query(
    q: Any, k: Any, v: Any, scale: float, mask: Any = None, max_bias: float | None = None, cap: float | None = None
) -> Any:
    """candle's loops in NumPy: ``mask`` an ``AttnMask`` without tensor, or an array ``(b, s, t)`` to add."""
    (b, s, heads, _), (t, shared) = q.shape, k.shape[1:3]
    group, power = heads // shared, 2 ** math.ceil(math.log2(heads))
    causal = isinstance(mask, AttnMask) and mask.is_causal()
    out = np.zeros((b, heads, s, v.shape[3]))
    for n, h, i in np.ndindex(b, heads, s):
        slope = 2.0 ** (-max_bias * (h + 1) / power) if max_bias else 0.0
        place = i + mask.kv_offset() if causal and s > 1 else i + t - s
        keys = range(min(place + 1, t)) if causal else range(t)
        scores = []
        for j in keys:
            score = scale * float(q[n, i, h] @ k[n, j, h // group])
            score = cap * math.tanh(score / cap) if cap else score
            if isinstance(mask, np.ndarray):
                score += mask[n, i, j] * (slope if max_bias else 1.0)
            else:
                score -= slope * abs(place - j)
            scores.append(score)
        e = np.exp(np.array(scores) - max(scores))
        out[n, h, i] = (e / e.sum()) @ v[n, : len(scores), h // group]
    return out


def qkv(b: int, s: int, t: int, heads: int, shared: int, d: int = 4) -> tuple[Any, Any, Any]:
    return normal(b, s, heads, d), normal(b, t, shared, d, seed=1), normal(b, t, shared, d, seed=2)


@pytest.mark.parametrize("cap", [None, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("max_bias", [None, 0.0, 8.0])
@pytest.mark.parametrize("mask", MASKS)
def test_values(mask: Any, max_bias: float | None, cap: float | None) -> None:
    given = qkv(2, 3, 7, 6, 2)
    want = by_query(*given, SCALE, mask, max_bias, cap)
    assert want.shape == (2, 6, 3, 4)
    check(lambda q, k, v: flash_attn(q, k, v, SCALE, mask, max_bias, cap), given, want)


@pytest.mark.parametrize("mask", [None, AttnMask.causal(), AttnMask.Causal(3)])
@pytest.mark.parametrize("max_bias", [None, 4.0])
def test_dtypes(mask: Any, max_bias: float | None) -> None:
    check_dtypes(
        lambda q, k, v: flash_attn(q, k, v, SCALE, mask, max_bias),
        qkv(1, 4, 7, 4, 4),
        lambda q, k, v: by_query(q, k, v, SCALE, mask, max_bias),
    )


@settings(deadline=None, max_examples=25)
@given(
    b=st.integers(1, 2),
    s=st.integers(1, 5),
    t=st.integers(1, 6),
    shared=st.integers(1, 3),
    group=st.integers(1, 2),
    offset=st.none() | st.integers(0, 7),
    max_bias=st.none() | st.sampled_from([1.0, 8.0]),
)
def test_any_shape(b: int, s: int, t: int, shared: int, group: int, offset: int | None, max_bias: float | None) -> None:
    mask = None if offset is None else AttnMask.Causal(offset)
    given = qkv(b, s, t, shared * group, shared)
    got = flash_attn(*(Tensor.new(x) for x in given), SCALE, mask, max_bias)
    np.testing.assert_allclose(got.numpy(), by_query(*given, SCALE, mask, max_bias), 2e-5, 2e-6)


@pytest.mark.parametrize("offset", [0, 3, 6])
def test_a_single_query_sees_all_keys(offset: int) -> None:
    """candle's decode path does not look at the offset."""
    given = qkv(1, 1, 7, 2, 2)
    want = by_query(*given, SCALE)
    check(lambda q, k, v: flash_attn(q, k, v, SCALE, AttnMask.Causal(offset)), given, want)


def test_steps_with_a_cache_are_the_whole() -> None:
    """Prompt, then chunks with so many keys before them, as a model with a cache calls it."""
    q, k, v = (Tensor.new(x) for x in qkv(1, 7, 7, 4, 2))
    whole = flash_attn(q, k, v, SCALE, AttnMask.causal()).numpy()
    for start, end in ((0, 4), (4, 6), (6, 7)):
        part = flash_attn(
            q.narrow(1, start, end - start), k.narrow(1, 0, end), v.narrow(1, 0, end), SCALE, AttnMask.Causal(start)
        )
        np.testing.assert_allclose(part.numpy(), whole[:, :, start:end], 2e-5, 2e-6)


@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize("max_bias", [None, 8.0])
def test_mask_of_a_tensor(max_bias: float | None, cap: float | None) -> None:
    """Added; with ALiBi multiplied by the heads' slopes, as llama.cpp's masks of distances want it."""
    given = qkv(2, 3, 5, 6, 3)
    mask = normal(2, 3, 5, seed=3)
    mask[:, 0, 3:] = -np.inf
    want = by_query(*given, SCALE, mask, max_bias, cap)

    def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return flash_attn(q, k, v, SCALE, AttnMask.Mask(mask), max_bias, cap)

    check(attend, (*given, mask), want)
    check(attend, (*given, mask[:, None]), want)
    check(attend, (*given, mask[:1]), by_query(*given, SCALE, np.repeat(mask[:1], 2, 0), max_bias, cap))
    check(attend, (*given, mask[0]), by_query(*given, SCALE, np.repeat(mask[:1], 2, 0), max_bias, cap))


def test_slopes_of_alibi() -> None:
    """Press et al. 2021: with 8 heads and a bias of 8 the slopes are 1/2, 1/4 … 1/256. Read off equal scores."""
    q, k = np.zeros((1, 2, 8, 4), np.float32), np.zeros((1, 2, 8, 4), np.float32)
    v = np.zeros((1, 2, 8, 1), np.float32)
    v[:, 1] = 1
    got = flash_attn(Tensor.new(q), Tensor.new(k), Tensor.new(v), 1.0, AttnMask.causal(), 8.0).numpy()[0, :, 1, 0]
    # The last query gives the key before it exp(-slope), itself 1.
    np.testing.assert_allclose(-np.log(1 / got - 1), 2.0 ** -np.arange(1, 9), 0, 1e-6)


def test_no_keys_and_no_queries() -> None:
    q, none = Tensor.new(normal(1, 2, 4, 4)), Tensor.zeros((1, 0, 4, 4), "f32")
    for mask in (None, AttnMask.causal()):
        assert flash_attn(q, none, none, 1.0, mask).to_dtype("f32").numpy().tolist() == np.zeros((1, 4, 2, 4)).tolist()
        assert flash_attn(none, q, q, 1.0, mask).shape == (1, 4, 0, 4)


def test_strided_input() -> None:
    q, k, v = qkv(1, 3, 5, 4, 2)
    moved = [Tensor.new(np.ascontiguousarray(x.transpose(0, 2, 1, 3))).transpose(1, 2) for x in (q, k, v)]
    got = flash_attn(*moved, SCALE, AttnMask.Causal(2))
    np.testing.assert_allclose(got.numpy(), by_query(q, k, v, SCALE, AttnMask.Causal(2)), 2e-5, 2e-6)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("max_bias", [None, 8.0])
@pytest.mark.parametrize("mask", [None, AttnMask.Causal(1), AttnMask.Causal(0)])
def test_gradients(mask: Any, max_bias: float | None, cap: float | None) -> None:
    assert_slopes(lambda q, k, v: flash_attn(q, k, v, SCALE, mask, max_bias, cap), *qkv(1, 3, 4, 2, 1, d=2))


@pytest.mark.parametrize("max_bias", [None, 8.0])
def test_gradient_of_a_mask(max_bias: float | None) -> None:
    assert_slopes(
        lambda q, k, v, m: flash_attn(q, k, v, SCALE, AttnMask.Mask(m), max_bias),
        *qkv(1, 2, 3, 2, 1, d=2),
        normal(1, 2, 3, seed=5),
    )


def test_masks() -> None:
    assert AttnMask.default() is AttnMask.None_
    assert AttnMask.causal() == AttnMask.Causal(kv_offset=0)
    assert AttnMask.causal_with_offset(3) == AttnMask.Causal(3) != AttnMask.causal()
    assert hash(AttnMask.Causal(3)) == hash(AttnMask.Causal(3))
    assert (AttnMask.Causal(3).is_causal(), AttnMask.Causal(3).kv_offset()) == (True, 3)
    t = Tensor.zeros((2, 2), "f32")
    for mask in (AttnMask.None_, AttnMask.Mask(t)):
        assert (mask.is_causal(), mask.kv_offset()) == (False, 0)
    assert AttnMask.Mask(t).tensor() is t
    assert AttnMask.Mask(t) == AttnMask.Mask(t) != AttnMask.Mask(t.copy())
    assert AttnMask.None_ != "None"
    assert repr(AttnMask.Causal(3)) == "AttnMask.Causal(kv_offset=3)"
    assert repr(AttnMask.None_) == "AttnMask.None_"
    assert repr(AttnMask.Mask(t)).startswith("AttnMask.Mask(")


def test_refusals() -> None:
    q, k, v = (Tensor.new(x) for x in qkv(1, 3, 5, 4, 2))
    with pytest.raises(UnexpectedNumberOfDimsError, match="flash_attn"):
        flash_attn(q.squeeze(0), k, v, 1.0)
    takes = r"flash_attn: .*takes q \(b, s, h, d\), k and v \(b, t, kv, d\) with h a multiple of kv"
    wrong = Tensor.zeros((1, 5, 3, 4), "f32")
    with pytest.raises(ShapeMismatchBinaryOpError, match=takes):
        flash_attn(q, wrong, wrong, 1.0)
    with pytest.raises(ShapeMismatchBinaryOpError, match=takes):
        flash_attn(q, k, v.narrow(1, 0, 4), 1.0)
    with pytest.raises(DTypeMismatchError):
        flash_attn(q, k.to_dtype("f16"), v, 1.0)
    for mask in (Tensor.zeros((3, 5), "f16"), Tensor.zeros((3, 5), "u8")):
        with pytest.raises(DTypeMismatchError, match="flash_attn"):
            flash_attn(q, k, v, 1.0, AttnMask.Mask(mask))
    with pytest.raises(ShapeMismatchBinaryOpError):
        flash_attn(q, k, v, 1.0, AttnMask.Mask(Tensor.zeros((3, 4), "f32")))
    with pytest.raises(ArgumentTypeError, match=r"flash_attn: got mask .*takes an AttnMask"):
        flash_attn(q, k, v, 1.0, Tensor.zeros((3, 5), "f32"))  # type: ignore[arg-type]
    for cap in (-1.0, math.inf, math.nan):
        with pytest.raises(ArgumentValueError, match=f"flash_attn: got {cap} for softcap; takes a positive number"):
            flash_attn(q, k, v, 1.0, None, None, cap)
    with pytest.raises(ArgumentValueError, match="flash_attn: got nan for max_bias; takes a number"):
        flash_attn(q, k, v, 1.0, None, math.nan)
    with pytest.raises(ArgumentTypeError, match=r"flash_attn: got .* for max_bias; takes a number"):
        flash_attn(q, k, v, 1.0, None, "8")  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match=r"AttnMask.Causal: got kv_offset -1; takes 0 or more"):
        AttnMask.Causal(-1)
    for wrong_offset in (1.0, True):
        with pytest.raises(ArgumentTypeError, match=r"AttnMask.Causal: got kv_offset .*takes a count"):
            AttnMask.Causal(wrong_offset)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"AttnMask.Mask: got .*; takes a tensor"):
        AttnMask.Mask([[0.0]])  # type: ignore[arg-type]


def test_lazy_queries_with_an_eager_mask() -> None:
    q, k, v = qkv(1, 3, 5, 4, 2)
    mask = normal(1, 3, 5)
    got = flash_attn(*(LazyTensor.new(x) for x in (q, k, v)), SCALE, AttnMask.Mask(Tensor.new(mask)))
    assert isinstance(got, LazyTensor)
    np.testing.assert_allclose(got.numpy(), by_query(q, k, v, SCALE, mask), 2e-5, 2e-6)


def test_plain_causal_attention_builds_no_mask() -> None:
    """The kernel's own causal mask is used where it is the same; nodes: three views and the attention."""
    q, k, v = (LazyTensor.new(x) for x in qkv(1, 3, 5, 4, 2))
    operation = flash_attn(q, k, v, SCALE, AttnMask.Causal(2))._node.operation
    assert (operation.name(), operation.causal) == ("sdpa", True)
    assert len(flash_attn(q, k, v, SCALE, AttnMask.Causal(4))._node.inputs) == 3


def test_names() -> None:
    assert mc.nn.attention is attention
    assert DType.F32 is Tensor.zeros((1,), "f32").dtype
