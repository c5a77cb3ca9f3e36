"""``Sdpa`` against attention spelled out as candle's models write it: masks, scales, widths, gradients."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, Error, LazyTensor, Tensor, Var
from metal_candle.graph.operations.fused import Sdpa
from metal_candle.kernels import attention as module
from metal_candle.kernels.kernel import on_cpu

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

RNG = np.random.default_rng(0)
# Below and above the number of scores from which the CPU computes blocks of queries.
SIZES = [(2, 4, 5, 7), (2, 4, 70, 90)]
MASKS = ["(t,s)", "(1,1,t,s)", "(b,1,1,s)", "(h,1,1)", "(b,h,t,s)", "()"]


def heads(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mask_shape(name: str, sizes: tuple[int, int, int, int]) -> tuple[int, ...]:
    named = dict(zip("bhts", sizes)) | {"1": 1}
    return tuple(named[part] for part in name.strip("()").split(",") if part)


def spelled_out(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    """Scores, scale, mask, softmax and values, one operation each; k and v have as many heads as q."""
    # As a tensor, since a product with the number 0 ends the gradient, as in candle.
    factor = type(q).new(np.array(scale)).to_dtype(q.dtype)
    scores = q.broadcast_matmul(k.transpose(2, 3)).broadcast_mul(factor)
    if mask is None:
        pass
    elif mask.dtype.is_float():
        scores = scores.broadcast_add(mask)
    else:
        hidden = scores.zeros_like().affine(1.0, float("-inf"))
        scores = mask.broadcast_as(scores.shape).where_cond(scores, hidden)
    return scores.softmax(-1).broadcast_matmul(v)


def sdpa(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    return q._record(Sdpa(scale, False), k, v, *(() if mask is None else (mask,)))


def both(arrays: list[Any], mask: Any, scale: float, dtype: DType = DType.F32) -> list[tuple[Any, list[Any]]]:
    """Value and gradients, of a float mask too, of ``Sdpa`` and of attention spelled out."""
    found = []
    for function in (sdpa, spelled_out):
        variables = [Var(x, dtype=dtype) for x in arrays]
        given = None
        if mask is not None and mask.dtype.kind == "f":
            variables.append(Var(mask, dtype=dtype))
            given = LazyTensor.from_tensor(variables[-1])
        elif mask is not None:
            given = LazyTensor.new(mask)
        q, k, v = map(LazyTensor.from_tensor, variables[:3])
        result = function(q, k, v, given, scale)
        weight = LazyTensor.new(heads(*result.shape, seed=7)).to_dtype(dtype)
        grads = (result * weight).sum_all().backward()
        found.append((result.numpy(), [grads[x].numpy() for x in variables]))
    return found


def assert_alike(found: list[tuple[Any, list[Any]]], tolerance: Any) -> None:
    (value, gradients), (want, plain) = found
    assert_near(value, want, tolerance)
    assert len(gradients) == len(plain)
    for gradient, expected in zip(gradients, plain):
        # A gradient of k or v is a sum over the queries, one of a mask over heads too.
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        assert_near(gradient, expected, tolerance._replace(absolute=5 * scale * tolerance.absolute))


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.BF16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_is_added_gets_its_gradient(name: str, sizes: tuple[int, int, int, int], dtype: DType) -> None:
    b, h, t, s = sizes
    arrays = [heads(b, h, t, 8), heads(b, h, s, 8, seed=1), heads(b, h, s, 8, seed=2)]
    found = both(arrays, heads(*mask_shape(name, sizes), seed=3), 0.35, dtype)
    assert np.abs(found[0][1][3]).max() > 0 or name in ("()", "(h,1,1)")
    tolerance = VALUE[dtype]
    # Spelled out, bfloat16 is rounded four times more.
    assert_alike(found, tolerance._replace(absolute=3 * tolerance.absolute) if dtype is DType.BF16 else tolerance)


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.int64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", MASKS[:3])
def test_integers_hide_where_they_are_0(name: str, sizes: tuple[int, int, int, int], kind: Any) -> None:
    b, h, t, s = sizes
    mask = RNG.integers(0, 4, mask_shape(name, sizes)).astype(kind)
    mask[..., 0] = 1
    arrays = [heads(b, h, t, 8), heads(b, h, s, 8, seed=1), heads(b, h, s, 8, seed=2)]
    assert_alike(both(arrays, mask, 0.35), VALUE[DType.F32])


@pytest.mark.skipif(not on_cpu(), reason="on a GPU it is what MLX's kernel gives")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["added", "integers"])
def test_a_query_that_sees_no_key_is_nan(sizes: tuple[int, int, int, int], kind: str) -> None:
    b, h, t, s = sizes
    keep = np.ones((t, s), np.uint8)
    keep[1] = 0
    keep[2, 3:] = 0
    mask = keep if kind == "integers" else np.where(keep > 0, 0, -np.inf).astype(np.float32)
    q, k, v = (LazyTensor.new(heads(b, h, n, 8, seed=n)) for n in (t, s, s))
    got, want = (function(q, k, v, LazyTensor.new(mask), 0.5).numpy() for function in (sdpa, spelled_out))
    assert np.isnan(got[:, :, 1]).all()
    assert np.isfinite(np.delete(got, 1, axis=2)).all()
    assert_near(got, want, VALUE[DType.F32])


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([*SIZES, (1, 2, 1, 40), (1, 1, 3, 1)]),
    st.sampled_from([0.0, 1.0, -0.7, 3.0, 1e-3]),
    st.sampled_from([1, 3, 8, 16]),
    st.sampled_from([None, "(t,s)", "(b,1,1,s)"]),
    st.booleans(),
)
def test_any_scale_and_width_of_values(
    sizes: tuple[int, int, int, int], scale: float, width: int, name: str | None, wide: bool
) -> None:
    b, h, t, s = sizes
    arrays = [heads(b, h, t, 8), heads(b, h, s, 8, seed=1), heads(b, h, s, width, seed=2)]
    mask = None if name is None else heads(*mask_shape(name, sizes), seed=3)
    dtype = DType.F64 if wide else DType.F32
    found = both(arrays, mask, scale, dtype)
    assert found[0][0].shape == (b, h, t, width)
    # Scores of up to 40, rounded by 2e-6 in either, are exponents.
    assert_alike(found, VALUE[dtype]._replace(absolute=5 * VALUE[dtype].absolute))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_grouped_heads_with_a_mask_and_wider_values(sizes: tuple[int, int, int, int]) -> None:
    b, h, t, s = sizes
    q, k, v = heads(b, h, t, 8), heads(b, h // 2, s, 8, seed=1), heads(b, h // 2, s, 12, seed=2)
    mask = heads(t, s, seed=3)
    got = sdpa(*(Tensor.new(x) for x in (q, k, v)), Tensor.new(mask), 0.3)
    repeated = (Tensor.new(np.repeat(x, 2, axis=1)) for x in (k, v))
    assert_near(got.numpy(), spelled_out(Tensor.new(q), *repeated, Tensor.new(mask), 0.3).numpy(), VALUE[DType.F32])


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.BF16], ids=str)
def test_without_keys_the_sum_is_empty(dtype: DType) -> None:
    q, k, v = (Tensor.new(heads(*shape)).to_dtype(dtype) for shape in ((1, 2, 3, 4), (1, 2, 0, 4), (1, 2, 0, 5)))
    result = sdpa(q, k, v, None, 1.0)
    assert tuple(result.shape) == (1, 2, 3, 5)
    assert (result.numpy() == 0).all()
    assert_near(spelled_out(q, k, v, None, 1.0).numpy(), result.numpy(), VALUE[dtype])


def test_a_gpu_s_variant_has_the_gradient_of_its_mask() -> None:
    q, k, v = (mx.array(heads(1, 2, n, 8, seed=n)) for n in (5, 7, 7))
    mask = mx.array(heads(5, 7))
    outputs = module._FAST.forward(q, k, v, 0.3, mask)
    needs = (True, False, True, True)
    got = module._FAST.vjp(mx.ones_like(outputs[0]), (q, k, v), outputs, needs, 0.3, mask)
    want = module._BLOCKS.vjp(mx.ones_like(outputs[0]), (q, k, v), outputs[:1], needs, 0.3, mask)
    assert [x is not None for x in got] == list(needs)
    for ours, plain in zip(got, want):
        if ours is not None:
            assert_near(ours, plain, VALUE[DType.F32])


def test_refusals_when_recorded() -> None:
    q, k = LazyTensor.new(heads(2, 4, 5, 8)), LazyTensor.new(heads(2, 2, 7, 8))
    for bad in ((2, 3, 7, 8), (1, 2, 7, 8), (2, 2, 7, 9), (2, 0, 7, 8)):
        with pytest.raises(Error, match=r"sdpa: got shapes .* takes q \(b, h, t, d\), k \(b, kv, s, d\)"):
            sdpa(q, LazyTensor.new(heads(*bad)), LazyTensor.new(heads(*bad)), None, 1.0)
    with pytest.raises(Error, match=r"sdpa: got shapes \(2, 2, 7, 8\) and \(2, 2, 6, 8\)"):
        sdpa(q, k, LazyTensor.new(heads(2, 2, 6, 8)), None, 1.0)
    for shape in ((5, 6), (2, 1, 5), (1, 2, 4, 5, 7)):
        with pytest.raises(Error, match=r"takes a mask that broadcasts to \(b, h, t, s\)"):
            sdpa(q, k, k, LazyTensor.new(heads(*shape)), 1.0)
    with pytest.raises(Error, match=r"sdpa: .*bf16"):
        sdpa(q, k, k, LazyTensor.new(heads(5, 7)).to_dtype("bf16"), 1.0)
    with pytest.raises(Error, match="sdpa: got a mask and causal=True; takes one of them"):
        q._record(Sdpa(1.0, True), k, k, LazyTensor.new(heads(5, 7)))
