"""ggml's blocks: decoded and encoded to the last bit, and repacked for MLX without loss."""

from __future__ import annotations

import sys
from typing import Any

from metal_candle.error import Error
from metal_candle.formats.ggml_affine import AFFINE, K_AFFINE, repack
from metal_candle.formats.ggml_blocks import BLOCKS, TYPES, byte_count, decode
from metal_candle.formats.ggml_encode import ENCODED, encode
from metal_candle.kernels.quantized_linear import unpack

import gguf
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

Types = gguf.GGMLQuantizationType
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def reference(raw: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw, Types[kind])


def odd_rows(seed: int = 0) -> np.ndarray[Any, Any]:
    """Rows of 256: zeros, one number, ties, huge, tiny and mixed ones."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, 256)).astype(np.float32)
    rows[0] = 0
    rows[1] = 7
    rows[2] = np.round(rows[2] * 4) / 4
    rows[3] = np.arange(256) - 128
    rows[4] *= 1e-6
    rows[5] *= 1e-30
    rows[6] *= 1e4
    rows[7, ::2] = 0
    rows[8] = np.abs(rows[8])
    rows[9] = -np.abs(rows[9])
    return rows


def test_the_table_is_ggmls() -> None:
    assert len(BLOCKS) == len(TYPES) == 15
    for name, block in BLOCKS.items():
        # The package's Q8_1 is from when its two numbers were float32; in ggml and candle they are float16.
        size = (32, 36) if name == "Q8_1" else gguf.GGML_QUANT_SIZES[Types[name]]
        assert (block.elements, block.bytes) == size
        assert block.number == Types[name]
    assert byte_count("Q6_K", 512) == 420


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32", *K_QUANTS])
def test_any_bytes_decode_to_the_last_bit(kind: str) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (7, 3 * byte_count(kind, 256)), dtype=np.uint8)
    got, want = decode(raw, kind), reference(raw, kind)
    assert got.dtype == np.float32
    assert got.shape == want.shape == (7, 768)
    np.testing.assert_array_equal(got, want, strict=True)  # NaN of the same places count as equal


def test_q8_1_and_q8_k_are_scales_times_integers() -> None:
    codes = np.random.default_rng(2).integers(-128, 128, (2, 256), dtype=np.int8)
    block = np.concatenate([np.float32([0.5]).view(np.uint8), codes[0].view(np.uint8), np.zeros(32, np.uint8)])
    np.testing.assert_array_equal(decode(block[None], "Q8_K")[0], codes[0] * np.float32(0.5))
    small = np.concatenate([np.float16([0.25, 9]).view(np.uint8), codes[1, :32].view(np.uint8)])
    np.testing.assert_array_equal(decode(small[None], "Q8_1")[0], codes[1, :32] * np.float32(0.25))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_encoding_is_the_reference_quantisation(kind: str) -> None:
    values = odd_rows()
    got = encode(values, kind)
    want = gguf.quants.quantize(values, Types[kind]).view(np.uint8).reshape(-1)
    if kind.endswith("_1"):
        # The minimum of 0.0 and -0.0 is either; everything else has to be equal.
        np.testing.assert_array_equal(decode(got.reshape(40, -1), kind), reference(want.reshape(40, -1), kind))
        assert (got != want).sum() <= 40
    else:
        np.testing.assert_array_equal(got, want)


def test_q8_1_is_q8_0_with_a_sum() -> None:
    values = np.delete(odd_rows(), 6, axis=0)  # whose sums float16 cannot hold
    eight = encode(values, "Q8_0").reshape(-1, 34)
    one = encode(values, "Q8_1").reshape(-1, 36)
    np.testing.assert_array_equal(one[:, :2], eight[:, :2])
    np.testing.assert_array_equal(one[:, 4:], eight[:, 2:])
    scales = np.abs(values.reshape(-1, 32)).max(axis=1) / np.float32(127)
    sums = scales * eight[:, 2:].copy().view(np.int8).sum(axis=1, dtype=np.int32)
    np.testing.assert_array_equal(one[:, 2:4].copy().view(np.float16)[:, 0], sums.astype(np.float16))


@given(
    st.lists(st.floats(width=32, allow_subnormal=False), min_size=32, max_size=32),
    st.sampled_from(["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "F16", "BF16", "F32"]),
)
@settings(max_examples=200, deadline=None)
def test_encoding_takes_any_float(values: list[float], kind: str) -> None:
    """No warning and no crash; and where numbers and scales are finite, no error above half a step (and rounding)."""
    block = np.array(values, np.float32)
    got = decode(encode(block, kind)[None], kind)[0]
    assert got.shape == (32,)
    # Up to 30000 even Q4_0's scale, an eighth of that, and Q4_1's minimum are far inside float16's range.
    if not np.isfinite(block).all() or np.abs(block).max() > 30000 or kind.startswith(("F", "B")):
        return
    largest = np.abs(block).max()
    span = block.max() - block.min() if kind.endswith("_1") and kind != "Q8_1" else 2 * largest
    steps = {"4": 15, "5": 31, "8": 254}[kind[1]]
    # One step of range at its edge (Q4_0 has -8 but no 8), half elsewhere; scales are rounded to float16.
    np.testing.assert_allclose(got, block, atol=span / steps * 1.1 + largest * 2e-3 + 1e-6)


def test_nan_counts_as_zero() -> None:
    block = np.full(32, np.nan, np.float32)
    for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        np.testing.assert_array_equal(decode(encode(block, kind)[None], kind), np.zeros((1, 32), np.float32))
    assert np.isnan(decode(encode(block, "BF16")[None], "BF16")).all()


def test_large_and_empty_arrays_are_encoded_in_parts() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(2, (1 << 19) + 1024)).astype(np.float32)  # crosses the part of 2^20
    np.testing.assert_array_equal(
        encode(values, "Q4_0").reshape(2, -1), np.stack([encode(row, "Q4_0") for row in values])
    )
    assert encode(np.empty((0, 32), np.float32), "Q8_0").shape == (0,)
    assert decode(np.empty((1, 0), np.uint8), "Q5_1").shape == (1, 0)


@pytest.mark.parametrize("kind", sorted(set(BLOCKS) - set(ENCODED)))
def test_k_quants_are_not_written(kind: str) -> None:
    with pytest.raises(Error, match=f"{kind} is only read; takes F32, F16, BF16, Q4_0"):
        encode(np.zeros(256, np.float32), kind)


def test_without_the_gguf_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(Error, match=r'Q4_K: is read with the gguf package: pip install "metal-candle\[gguf\]"'):
        decode(np.zeros((1, 144), np.uint8), "Q4_K")
    assert decode(np.zeros((1, 18), np.uint8), "Q4_0").shape == (1, 32)


@pytest.mark.parametrize("kind", AFFINE)
def test_repacking_loses_nothing(kind: str) -> None:
    values = odd_rows()
    values[10] *= 1e5  # a scale whose multiple by 128 float16 cannot hold
    raw = encode(values, kind).reshape(40, -1)
    affine = repack(raw, kind)
    if kind == "Q4_1" or kind == "Q5_1":
        assert affine is None  # its minimum is infinite
        raw = raw[:10]
        affine = repack(raw, kind)
    assert affine is not None
    assert affine.codes.shape == (len(raw), 256 * affine.bits // 32)
    weight = [mx.array(part) for part in affine[:3]]
    np.testing.assert_array_equal(np.array(unpack(weight, affine.bits)), decode(raw, kind))


def test_scales_are_kept_as_small_as_they_are_exact() -> None:
    values = odd_rows()
    small = repack(encode(values[:4], "Q8_0").reshape(4, -1), "Q8_0")
    assert small is not None
    assert small.scales.dtype == small.biases.dtype == np.float16
    large = repack(encode(values[:4] * np.float32(1e4), "Q8_0").reshape(4, -1), "Q8_0")
    assert large is not None
    assert large.biases.dtype == np.float32
    assert repack(encode(values[:4] * 1e30, "Q8_0").reshape(4, -1), "Q8_0") is None


@pytest.mark.parametrize("kind", K_AFFINE)
def test_k_quants_repacked_are_the_gguf_packages_numbers_bit_by_bit(kind: str) -> None:
    """Random bytes are blocks, too; their d and dmin are made finite halves."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (3, 2 * BLOCKS[kind].bytes), np.uint8)
    blocks = raw.reshape(6, -1)
    blocks[:, :4] = rng.standard_normal((6, 2)).astype("<f2").view(np.uint8)
    affine = repack(raw, kind)
    assert affine is not None
    assert affine.bits == int(kind[1])
    wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    got = unpack([mx.array(part) for part in affine[:3]], affine.bits)
    np.testing.assert_array_equal(np.array(got), wanted)
    blocks[4, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    assert repack(raw, kind) is None
