"""Products of a mixture of experts, against a loop over pairs."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.error import (
    ArgumentTypeError,
    ArgumentValueError,
    DTypeMismatchError,
    InvalidIndexError,
    ShapeMismatchBinaryOpError,
    ShapeMismatchError,
    UnexpectedNumberOfDimsError,
    UnsupportedDTypeForOpError,
)
from metal_candle.kernels import expert_linear
from metal_candle.nn import moe
from metal_candle.nn.moe import moe_gemm, moe_gemm_gguf, moe_gemm_gguf_supports_dtype
from metal_candle.quantized import GgmlDType, QTensor

import mlx.core as mx
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal

TOKENS, TOPK, EXPERTS, WIDTH, OUT = 5, 2, 4, 6, 3


def by_pair(x: Any, weights: Any, pairs: Any, experts: Any, topk: int, factors: Any = None) -> Any:
    """candle's kernel in NumPy: row ``pairs[i]`` of the result is of expert ``experts[i]``."""
    out = np.zeros((len(x) * (topk if factors is None else 1), weights.shape[1]))
    for pair, expert in zip(pairs, experts):
        row = x[pair if factors is not None else pair // topk]
        out[pair] = (weights[expert] @ row) * (1.0 if factors is None else np.reshape(factors, -1)[pair])
    return out


def routed(pairs: int, experts: int = EXPERTS, seed: int = 0) -> tuple[Any, Any]:
    """Pairs sorted by expert, and the expert of each; the last expert has none."""
    of_pair = np.random.default_rng(seed).integers(0, max(1, experts - 1), pairs).astype(np.uint32)
    order = np.argsort(of_pair, kind="stable").astype(np.uint32)
    return order, of_pair[order]


@pytest.mark.parametrize("is_prefill", [True, False])
@pytest.mark.parametrize("topk", [1, 2, 3])
def test_without_weights(topk: int, is_prefill: bool) -> None:
    """As the gate and up projections are called: a token's row for each of its experts."""
    x, weights = normal(TOKENS, WIDTH), normal(EXPERTS, OUT, WIDTH, seed=1)
    pairs, experts = routed(TOKENS * topk)
    check(
        lambda x, w, p, e: moe_gemm(x, w, None, p, e, topk, is_prefill),
        (x, weights, pairs, experts),
        by_pair(x, weights, pairs, experts, topk),
    )


@pytest.mark.parametrize("shape", [(TOKENS * TOPK,), (TOKENS, TOPK)])
def test_with_weights(shape: tuple[int, ...]) -> None:
    """As the down projection is called: a row for each pair, multiplied by the router's weight."""
    x, weights, factors = normal(TOKENS * TOPK, WIDTH), normal(EXPERTS, OUT, WIDTH, seed=1), normal(*shape, seed=2)
    pairs, experts = routed(TOKENS * TOPK)
    check(
        lambda x, w, f, p, e: moe_gemm(x, w, f, p, e, TOPK, True),
        (x, weights, factors, pairs, experts),
        by_pair(x, weights, pairs, experts, TOPK, factors),
    )


def test_dtypes() -> None:
    pairs, experts = routed(TOKENS * TOPK)
    check_dtypes(
        lambda x, w, f: moe_gemm(x, w, f, *(x._lift(Tensor.new(each)) for each in (pairs, experts)), TOPK, True),
        (normal(TOKENS * TOPK, WIDTH), normal(EXPERTS, OUT, WIDTH, seed=1), normal(TOKENS * TOPK, seed=2)),
        lambda x, w, f: by_pair(x, w, pairs, experts, TOPK, f),
    )
    # candle's router weights are F32 beside halves.
    given = (
        Tensor.new(normal(TOKENS * TOPK, WIDTH)).to_dtype("bf16"),
        Tensor.new(normal(EXPERTS, OUT, WIDTH)).to_dtype("bf16"),
    )
    got = moe_gemm(*given, Tensor.new(normal(TOKENS * TOPK)), Tensor.new(pairs), Tensor.new(experts), TOPK, True)
    assert got.dtype is DType.BF16


def test_pairs_in_any_order_and_pairs_left_out() -> None:
    x, weights = normal(TOKENS, WIDTH), normal(EXPERTS, OUT, WIDTH, seed=1)
    pairs, experts = routed(TOKENS * TOPK)
    mixed = np.random.default_rng(3).permutation(len(pairs))
    want = by_pair(x, weights, pairs, experts, TOPK)
    check(lambda x, w, p, e: moe_gemm(x, w, None, p, e, TOPK, False), (x, weights, pairs[mixed], experts[mixed]), want)
    # The largest id names nothing.
    pairs, experts = routed(TOKENS)
    left = int(pairs[0])
    want = by_pair(x, weights, pairs, experts, 1)
    want[left], pairs[0] = 0, np.iinfo(np.uint32).max
    check(lambda x, w, p, e: moe_gemm(x, w, None, p, e, 1, False), (x, weights, pairs, experts), want)


@pytest.mark.parametrize(("tokens", "width", "out"), [(0, 6, 3), (5, 6, 0), (1, 1, 1), (33, 64, 7)])
def test_awkward_sizes(tokens: int, width: int, out: int) -> None:
    x, weights = normal(tokens, width), normal(EXPERTS, out, width, seed=1)
    pairs, experts = routed(tokens)
    check(
        lambda x, w, p, e: moe_gemm(x, w, None, p, e, 1, True),
        (x, weights, pairs, experts),
        by_pair(x, weights, pairs, experts, 1),
    )


def test_gradients() -> None:
    pairs, experts = routed(3 * TOPK)
    ids = Tensor.new(pairs), Tensor.new(experts)
    weights = normal(EXPERTS, 2, 3, seed=1)
    assert_slopes(lambda x, w: moe_gemm(x, w, None, *ids, TOPK, True), normal(3, 3), weights)
    assert_slopes(
        lambda x, w, f: moe_gemm(x, w, f, *ids, TOPK, True), normal(3 * TOPK, 3), weights, normal(3, TOPK, seed=2)
    )


def test_an_expert_without_tokens_gets_zeros() -> None:
    pairs, experts = routed(TOKENS)
    weights = Var.new(normal(EXPERTS, OUT, WIDTH))
    x = Tensor.new(normal(TOKENS, WIDTH))
    grads = moe_gemm(x, weights, None, Tensor.new(pairs), Tensor.new(experts), 1, True).sum_all().backward()
    assert not grads[weights].numpy()[-1].any()
    assert grads[weights].numpy()[0].any()


@pytest.mark.parametrize("transpose", [True, False])
def test_inside_mx_compile_the_same(transpose: bool) -> None:
    """Where ids have no values, as on a GPU: MLX's gathered products."""
    x, ids = mx.array(normal(7, WIDTH if transpose else OUT)), mx.array(np.array([0, 0, 1, 3, 3, 3, 2], np.uint32))
    weight = mx.array(normal(EXPERTS, OUT, WIDTH, seed=1))
    function = expert_linear.forward if transpose else expert_linear.gradient_of_x
    want = function(x, ids, [weight], 32)
    got = mx.compile(lambda x, i, w: function(x, i, [w], 32))(x, ids, weight)
    np.testing.assert_allclose(np.array(got), np.array(want), 2e-5, 2e-6)
    cotangent = mx.array(normal(7, OUT, seed=3))
    rows = mx.array(normal(7, WIDTH))
    of_weight = expert_linear.gradient_of_weight(cotangent, rows, ids, weight)
    traced = mx.compile(expert_linear.gradient_of_weight)(cotangent, rows, ids, weight)
    np.testing.assert_allclose(np.array(traced), np.array(of_weight), 2e-5, 2e-6)


@pytest.mark.parametrize("transpose", [True, False])
def test_quantised_inside_mx_compile_the_same(transpose: bool) -> None:
    weight = mx.array(normal(EXPERTS, 32, 64, seed=1))
    parts = mx.quantize(weight, group_size=32, bits=8)
    x, ids = mx.array(normal(5, 64 if transpose else 32)), mx.array(np.array([0, 1, 1, 3, 2], np.uint32))
    function = expert_linear.forward if transpose else expert_linear.gradient_of_x
    want = function(x, ids, parts, 8)
    got = mx.compile(lambda x, i, *w: function(x, i, w, 8))(x, ids, *parts)
    np.testing.assert_allclose(np.array(got), np.array(want), 2e-5, 2e-5)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("is_prefill", [False, True])
def test_gguf(weighed: bool, is_prefill: bool) -> None:
    experts = QTensor.quantize(Tensor.new(normal(EXPERTS, 5, 64, seed=1)), GgmlDType.Q8_0)
    numbers = experts.dequantize().numpy()
    x, factors = normal(TOKENS * TOPK if weighed else TOKENS, 64), normal(TOKENS, TOPK, seed=2) if weighed else None
    pairs, of_pair = routed(TOKENS * TOPK)
    beside = () if factors is None else (factors,)

    def function(x: Any, p: Any, e: Any, f: Any = None) -> Any:
        return moe_gemm_gguf(x, experts, f, p, e, TOPK, is_prefill, DType.F16)

    check(function, (x, pairs, of_pair, *beside), by_pair(x, numbers, pairs, of_pair, TOPK, factors))


def test_gguf_has_the_gradient_of_its_input() -> None:
    experts = QTensor.quantize(Tensor.new(normal(EXPERTS, 5, 64, seed=1)), GgmlDType.Q8_0)
    pairs, of_pair = routed(TOKENS)
    x = Var.new(normal(TOKENS, 64))
    ids = Tensor.new(pairs), Tensor.new(of_pair)
    got = moe_gemm_gguf(x, experts, None, *ids, 1, True, "bf16").sum_all().backward()[x]
    want = moe_gemm(x, experts.dequantize(), None, *ids, 1, True).sum_all().backward()[x]
    np.testing.assert_allclose(got.numpy(), want.numpy(), 2e-5, 2e-6)


@pytest.mark.parametrize("dtype", [GgmlDType.Q4K, GgmlDType.Q6K], ids=str)
def test_gguf_of_k_quants(dtype: GgmlDType) -> None:
    """Blocks as they stand in a file; of random bytes, with scales that are small numbers."""
    pytest.importorskip("gguf")
    count = EXPERTS * 3
    blocks = np.random.default_rng(0).integers(0, 256, (count, dtype.type_size()), np.uint8)
    scales = np.full((count, 1), 0.01, np.float16).view(np.uint8)
    if dtype is GgmlDType.Q4K:
        blocks[:, :2] = blocks[:, 2:4] = scales
    else:
        blocks[:, -2:] = scales
    experts = QTensor.from_data(blocks.tobytes(), (EXPERTS, 3, 256), dtype)
    pairs, of_pair = routed(TOKENS)
    x = normal(TOKENS, 256)
    got = moe_gemm_gguf(Tensor.new(x), experts, None, Tensor.new(pairs), Tensor.new(of_pair), 1, True, "f16")
    want = by_pair(x, experts.dequantize().numpy(), pairs, of_pair, 1)
    np.testing.assert_allclose(got.numpy(), want, 2e-4, 2e-4)


def test_what_gguf_takes() -> None:
    taken = {dtype for dtype in GgmlDType if moe_gemm_gguf_supports_dtype(dtype)}
    assert taken == {GgmlDType[name] for name in ("Q8_0", "Q2K", "Q3K", "Q4K", "Q5K", "Q6K")}


def test_refusals() -> None:
    x, weights = Tensor.new(normal(2, 4)), Tensor.new(normal(3, 5, 4))
    ids = Tensor.new(np.arange(4, dtype=np.uint32)), Tensor.new(np.zeros(4, np.uint32))
    with pytest.raises(UnexpectedNumberOfDimsError, match="moe_gemm"):
        moe_gemm(x.unsqueeze(0), weights, None, *ids, 2, True)
    with pytest.raises(UnexpectedNumberOfDimsError, match="moe_gemm: weights"):
        moe_gemm(x, weights.squeeze(0).i(0), None, *ids, 2, True)
    with pytest.raises(ShapeMismatchBinaryOpError, match=r"moe_gemm: .*weights \(experts, n, k\)"):
        moe_gemm(x, weights.narrow(2, 0, 3), None, *ids, 2, True)
    with pytest.raises(DTypeMismatchError, match="moe_gemm"):
        moe_gemm(x, weights.to_dtype("f16"), None, *ids, 2, True)
    with pytest.raises(ShapeMismatchError, match=r"moe_gemm: got sorted_token_ids \(4,\); takes \(6,\), one for each"):
        moe_gemm(x, weights, None, *ids, 3, True)
    with pytest.raises(ShapeMismatchError, match=r"moe_gemm: got experts_ids \(1,\); takes \(4,\)"):
        moe_gemm(x, weights, None, ids[0], ids[1].narrow(0, 0, 1), 2, True)
    for topk in (0, -1):
        with pytest.raises(ArgumentValueError, match=r"moe_gemm: got topk .*; takes 1 or more"):
            moe_gemm(x, weights, None, *ids, topk, True)
    rows = Tensor.new(normal(4, 4))
    with pytest.raises(ShapeMismatchError, match=r"moe_gemm: got topk_weights \(2,\); takes 4 elements"):
        moe_gemm(rows, weights, Tensor.new([1.0, 2.0]), *ids, 2, True)
    with pytest.raises(UnsupportedDTypeForOpError, match="topk_weights of floats"):
        moe_gemm(rows, weights, Tensor.new([1, 2, 3, 4]), *ids, 2, True)
    wrong = Tensor.new(np.array([0, 1, 2, 3], np.uint32))
    with pytest.raises(InvalidIndexError):
        moe_gemm(x, weights, None, ids[0], wrong, 2, True)
    with pytest.raises(InvalidIndexError):
        moe_gemm(x, weights, None, ids[0] + 1.0, ids[1], 2, True)
    lazy = moe_gemm(LazyTensor.from_tensor(x), weights, None, ids[0], wrong, 2, True)
    with pytest.raises(InvalidIndexError):
        lazy.eval()
    quantised = QTensor.quantize(Tensor.new(normal(3, 5, 32)), GgmlDType.Q8_0)
    wide = Tensor.new(normal(2, 32))
    with pytest.raises(UnsupportedDTypeForOpError, match="an input of f32"):
        moe_gemm_gguf(wide.to_dtype("f16"), quantised, None, *ids, 2, True, "f16")
    with pytest.raises(UnsupportedDTypeForOpError, match="a dtype of f16 or bf16"):
        moe_gemm_gguf(wide, quantised, None, *ids, 2, True, "f32")
    other = QTensor.quantize(Tensor.new(normal(3, 5, 32)), GgmlDType.Q4_0)
    with pytest.raises(ArgumentValueError, match=r"moe_gemm_gguf: got weights of .*; takes one of"):
        moe_gemm_gguf(wide, other, None, *ids, 2, True, "f16")
    with pytest.raises(ArgumentTypeError, match=r"moe_gemm_gguf: got .* for the weights; takes a QTensor"):
        moe_gemm_gguf(wide, weights, None, *ids, 2, True, "f16")  # type: ignore[arg-type]


def test_names() -> None:
    assert mc.nn.moe is moe
