"""QuantizedWeight, QuantizedLinear, QuantizedEmbedding and the record quantized_head_cross_entropy."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.error import (
    ArgumentTypeError,
    ArgumentValueError,
    InvalidIndexError,
    ShapeMismatchBinaryOpError,
    ShapeMismatchError,
)
from metal_candle.nn.linear import Linear
from metal_candle.nn.loss import linear_cross_entropy
from metal_candle.nn.quantized_linear import (
    AFFINE_BITS,
    AFFINE_GROUPS,
    MODES,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
    quantized_cross_entropy,
)
from metal_candle.training import LoRAConfig, LoRALayer

import mlx.core as mx
import numpy as np
import pytest

PACKINGS = [(bits, 32, "affine") for bits in AFFINE_BITS]
PACKINGS += [(4, group, "affine") for group in AFFINE_GROUPS[1:]]
PACKINGS += [(*MODES[mode], mode) for mode in MODES]
# The same products of float32 numbers in another order: sums of 128 terms of about 1.
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weight(bits: int = 4, group: int = 32, mode: str = "affine", rows: int = 48) -> QuantizedWeight:
    return QuantizedWeight.quantize(Tensor.new(numbers(rows, 128)), bits, group, mode)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_weight_is_what_mlx_makes_of_it(packing: tuple[int, int, str]) -> None:
    bits, group, mode = packing
    held = weight(*packing)
    parts = mx.quantize(mx.array(numbers(48, 128)), group_size=group, bits=bits, mode=mode)
    wanted = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
    np.testing.assert_array_equal(held.dequantize().numpy(), np.array(wanted))
    assert tuple(held.shape) == (48, 128)
    assert held.packing() == packing
    assert held.nbytes() == sum(part.nbytes for part in parts) < 48 * 128 * 4 * (bits + 3) / 32
    again, before = held.requantize(Tensor.new(2 * numbers(48, 128))), held.dequantize().numpy()
    assert again.packing() == packing
    np.testing.assert_allclose(again.dequantize().numpy(), 2 * before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(), (1,), (30,), (2, 3)], ids=str)
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_the_layer_is_the_dense_one(packing: tuple[int, int, str], rows: tuple[int, ...]) -> None:
    held, bias = weight(*packing), Tensor.new(numbers(48, seed=2))
    layer, dense = QuantizedLinear(held, bias), Linear(held.dequantize(), bias)
    assert (layer.in_features, layer.out_features, layer.bias()) == (128, 48, bias)
    np.testing.assert_array_equal(layer.dense_weight().numpy(), dense.weight().numpy())
    x, upstream = numbers(*rows, 128, seed=3), Tensor.new(numbers(*rows, 48, seed=4))
    found = []
    for each in (layer, dense):
        var = Var.new(x)
        out = each(var.as_tensor())
        grads = (out * upstream).sum_all().backward()
        gradient = grads[var]
        assert gradient is not None
        found.append((out.numpy(), gradient.numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], **NEAR)
    np.testing.assert_allclose(found[0][1], found[1][1], **NEAR)
    lazy = layer(LazyTensor.new(x))
    assert isinstance(lazy, LazyTensor)
    np.testing.assert_array_equal(lazy.eval().numpy(), found[0][0])
    compiled = mc.compile(lambda t: layer(t))
    np.testing.assert_array_equal(compiled(Tensor.new(x)).numpy(), found[0][0])


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16], ids=str)
def test_halves_are_the_float32_product_rounded(dtype: DType) -> None:
    layer, x = QuantizedLinear(weight()), Tensor.new(numbers(3, 128)).to_dtype(dtype)
    out = layer(x)
    assert out.dtype is dtype
    wanted = layer(x.to_dtype(DType.F32)).to_dtype(dtype)
    np.testing.assert_array_equal(out.numpy(), wanted.numpy())


def test_an_adapter_acts_on_top() -> None:
    held = weight()
    lora = LoRALayer(128, 48, LoRAConfig(rank=4))
    lora.lora_b().set(Tensor.new(numbers(4, 48, seed=5)))
    x, found = Tensor.new(numbers(6, 128)), []
    for layer in (QuantizedLinear(held), Linear(held.dequantize())):
        out = lora.apply(layer(x), x)
        grads = out.sqr().mean_all().backward()
        found.append([out.numpy(), *(grads[var].numpy() for var in lora.trainable_variables())])
    for got, wanted in zip(*found):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_rows_of_a_table(packing: tuple[int, int, str]) -> None:
    table = weight(*packing)
    ids = Tensor.new(np.array([[3, 0], [47, 3]], np.uint32))
    rows = QuantizedEmbedding(table)(ids)
    np.testing.assert_array_equal(rows.numpy(), table.dequantize().numpy()[ids.numpy()])
    assert QuantizedEmbedding(table, DType.BF16)(ids).dtype is DType.BF16
    with pytest.raises(InvalidIndexError):
        QuantizedEmbedding(table)(Tensor.new(np.array([48], np.uint32)))


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_cross_entropy_of_a_quantised_head(packing: tuple[int, int, str], count: int) -> None:
    head = weight(*packing, rows=70)
    targets = np.arange(count, dtype=np.uint32) * 9 % 70
    if count > 2:
        targets[1] = np.iinfo(np.uint32).max  # names nothing
    found = []
    for quantised in (True, False):
        hidden = Var.new(numbers(count, 128) / 8)
        ids = Tensor.new(targets)
        if quantised:
            losses = quantized_cross_entropy(hidden.as_tensor(), head, ids)
        else:
            losses = linear_cross_entropy(hidden.as_tensor(), head.dequantize(), ids, reduction="none")
        weights = Tensor.new(numbers(count, seed=6))
        gradient = (losses * weights).sum_all().backward()[hidden]
        assert gradient is not None
        found.append((losses.numpy(), gradient.numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], **NEAR)
    np.testing.assert_allclose(found[0][1], found[1][1], **NEAR)


def test_blocks_of_words_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """More words and rows than a block holds, lazily and with a half."""
    monkeypatch.setattr("metal_candle.kernels.head_cross_entropy.WORDS", 16)
    monkeypatch.setattr("metal_candle.kernels.quantized_head.ROWS", 4)
    head, hidden = weight(rows=70), Tensor.new(numbers(9, 128) / 8)
    ids = Tensor.new(np.arange(9, dtype=np.uint32) * 7)
    wanted = linear_cross_entropy(hidden, head.dequantize(), ids, reduction="none").numpy()
    np.testing.assert_allclose(quantized_cross_entropy(hidden, head, ids).numpy(), wanted, **NEAR)
    lazy = quantized_cross_entropy(LazyTensor.from_tensor(hidden), head, ids)
    np.testing.assert_allclose(lazy.eval().numpy(), wanted, **NEAR)
    half = quantized_cross_entropy(hidden.to_dtype(DType.BF16), head, ids)
    assert half.dtype is DType.F32
    np.testing.assert_allclose(half.numpy(), wanted, rtol=2e-2, atol=1e-4)


def test_the_way_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of rows with all words, the products quantised."""
    head, ids = weight(rows=70), Tensor.new(np.arange(9, dtype=np.uint32) * 7)
    wanted = []
    for gpu in (False, True):
        if gpu:
            monkeypatch.setattr("metal_candle.kernels.quantized_head.on_cpu", lambda: False)
            monkeypatch.setattr("metal_candle.kernels.quantized_linear.on_cpu", lambda: False)
            monkeypatch.setattr("metal_candle.kernels.quantized_head.chunk_rows", lambda *_: 4)
        hidden = Var.new(numbers(9, 128) / 8)
        losses = quantized_cross_entropy(hidden.as_tensor(), head, ids)
        gradient = losses.sum_all().backward()[hidden]
        assert gradient is not None
        wanted.append((losses.numpy(), gradient.numpy()))
    np.testing.assert_allclose(wanted[1][0], wanted[0][0], **NEAR)
    np.testing.assert_allclose(wanted[1][1], wanted[0][1], **NEAR)


ODD: Any = [1]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: weight(7), ArgumentValueError, "quantize: got bits 7; takes 2, 3, 4, 5, 6 or 8"),
        (lambda: weight(4, 48), ArgumentValueError, "quantize: got group_size 48; takes 32, 64 or 128"),
        (
            lambda: weight(4, 32, "int4"),
            ArgumentValueError,
            "quantize: got mode 'int4'; takes affine, mxfp4, mxfp8 or nvfp4",
        ),
        (
            lambda: weight(8, 32, "nvfp4"),
            ArgumentValueError,
            "quantize: got bits 8 and group_size 32 in mode 'nvfp4'; takes 4 and 16",
        ),
        (
            lambda: QuantizedWeight.quantize(Tensor.new(numbers(4, 96))),
            ShapeMismatchError,
            "quantize: got a weight of shape (4, 96); takes (out, in) with an in that the group size 64 divides",
        ),
        (
            lambda: weight().requantize(Tensor.new(numbers(4, 128))),
            ShapeMismatchError,
            "requantize: got a weight of shape (4, 128); takes (48, 128)",
        ),
        (
            lambda: QuantizedWeight(weight().codes, weight().scales, None, 4, 32),
            ShapeMismatchError,
            "QuantizedWeight: got no biases in mode 'affine'; takes them in mode 'affine', and only there",
        ),
        (
            lambda: QuantizedWeight(weight().codes, weight().scales, weight().biases, 8, 32),
            ShapeMismatchError,
            "QuantizedWeight: got codes (48, 16) u32, scales (48, 4) f32, biases (48, 4) f32 for 8 bits",
        ),
        (
            lambda: QuantizedLinear(weight(), Tensor.new(numbers(4))),
            ShapeMismatchError,
            "QuantizedLinear: got a bias of shape (4,); takes (48,)",
        ),
        (
            lambda: QuantizedLinear(weight())(Tensor.new(numbers(2, 64))),
            ShapeMismatchBinaryOpError,
            "qmatmul",
        ),
        (lambda: weight(4, 32, ODD), ArgumentValueError, "quantize: got mode [1]; takes affine, mxfp4"),
        (lambda: QuantizedLinear(ODD), ArgumentTypeError, "QuantizedLinear: got a list; takes a QuantizedWeight"),
        (
            lambda: QuantizedLinear(weight()).forward(ODD),
            ArgumentTypeError,
            "QuantizedLinear: got a list; takes a tensor",
        ),
        (lambda: QuantizedEmbedding(ODD), ArgumentTypeError, "QuantizedEmbedding: got a list; takes a QuantizedWeight"),
        (lambda: QuantizedEmbedding(weight()).forward(ODD), ArgumentTypeError, "Embedding: got a list; takes a tensor"),
        (
            lambda: quantized_cross_entropy(Tensor.new(numbers(2, 128)), ODD, Tensor.new([1, 2])),
            ArgumentTypeError,
            "quantized_cross_entropy: got head a list; takes a QuantizedWeight",
        ),
    ],
)
def test_refusals(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


def test_in_words() -> None:
    layer = QuantizedLinear(weight(), Tensor.new(numbers(48)))
    assert repr(layer) == "QuantizedLinear(weight [48, 128] in 4 bits, groups of 32, bias [48] f32)"
    assert repr(weight(4, 32, "mxfp4")) == "QuantizedWeight([48, 128] in 4 bits of mxfp4, groups of 32)"
    assert repr(QuantizedEmbedding(weight(8))) == "QuantizedEmbedding(table [48, 128] in 8 bits, groups of 32, f32)"
