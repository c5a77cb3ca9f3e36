"""The crate's KVCache: what each layer holds, growth, trimming, what it refuses."""

from __future__ import annotations

from typing import Any

from metal_candle import Device, LazyTensor, Tensor
from metal_candle.error import (
    ArgumentValueError,
    DTypeMismatchError,
    Error,
    InferenceError,
    InvalidIndexError,
    ShapeMismatchError,
)
from metal_candle.inference import KVCache, KVCacheConfig

import mlx.core as mx
import numpy as np
import pytest

SMALL = KVCacheConfig(max_seq_len=700, num_layers=3, num_heads=2, head_dim=4, batch_size=2)


def entries(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 2, count, 4)).astype(np.float32)


def test_the_crates_defaults() -> None:
    config = KVCacheConfig()
    assert config == KVCacheConfig.default()
    sizes = (config.max_seq_len, config.num_layers, config.num_heads, config.head_dim, config.batch_size)
    assert sizes == (2048, 24, 14, 64, 1)
    cache = KVCache.new(config, Device.Cpu)
    assert (cache.position(), cache.is_empty(), cache.max_seq_len(), cache.num_cached_layers()) == (0, True, 2048, 0)
    assert cache.get(5) is None
    assert repr(cache) == "KVCache(position=0 of 2048, 0 of 24 layers)"
    assert cache.config() is config


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_layers_hold_what_was_appended_in_any_order(kind: Any) -> None:
    cache = KVCache(SMALL)
    keys, values = entries(600), entries(600, 1)
    begin = 0
    for count in (5, 1, 300, 1, 293):
        for layer in (2, 0, 1):
            part = slice(begin, begin + count)
            found = cache.update(layer, kind.new(keys[:, :, part] + layer), kind.new(values[:, :, part]))
            assert all(isinstance(tensor, kind) for tensor in found)
            np.testing.assert_array_equal(found[0].numpy(), keys[:, :, : part.stop] + layer)
            np.testing.assert_array_equal(found[1].numpy(), values[:, :, : part.stop])
            assert cache.position() == part.stop
        begin += count
    held = cache.get(1)
    assert held is not None
    np.testing.assert_array_equal(held[0].numpy(), keys + 1)
    assert (cache.num_cached_layers(), cache.length(1), cache.is_empty()) == (3, 600, False)
    cache.clear()
    assert (cache.position(), cache.num_cached_layers(), cache.get(1)) == (0, 0, None)


def test_every_layer_of_the_step_that_fills_it_has_room() -> None:
    cache = KVCache(KVCacheConfig(max_seq_len=6, num_layers=3, num_heads=2, head_dim=4, batch_size=2))
    for layer in range(3):
        cache.update(layer, Tensor.new(entries(5)), Tensor.new(entries(5)))
    one = Tensor.new(entries(1))
    for layer in range(3):
        cache.update(layer, one, one)
    for layer in range(3):
        with pytest.raises(InferenceError.CacheFull, match="KV-cache full: position 7 of 6") as caught:
            cache.update(layer, one, one)
        assert (caught.value.position, caught.value.max_len) == (7, 6)
        assert isinstance(caught.value, RuntimeError)
    assert [cache.length(layer) for layer in range(3)] == [6, 6, 6]


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_trimming_lets_another_continuation_be_tried(kind: Any) -> None:
    cache = KVCache(SMALL)
    keys = entries(10)
    first = cache.update(0, kind.new(keys), kind.new(keys))[0]
    cache.update(1, kind.new(keys[:, :, :4]), kind.new(keys[:, :, :4]))
    cache.trim(6)
    assert (cache.length(0), cache.length(1), cache.position()) == (6, 4, 6)
    other = entries(3, 9)
    found, _ = cache.update(0, kind.new(other), kind.new(other))
    np.testing.assert_array_equal(found.numpy(), np.concatenate([keys[:, :, :6], other], axis=2))
    np.testing.assert_array_equal(first.numpy(), keys)  # what was given away is as it was
    cache.trim(0)
    assert cache.is_empty()
    assert cache.num_cached_layers() == 0


def test_appending_writes_in_place() -> None:
    # 24 blocks of 256 entries; copying all at each of 200 tokens would take the block's size each time.
    cache = KVCache(KVCacheConfig(num_layers=1, num_heads=8, head_dim=64))
    one = Tensor.new(np.ones((1, 8, 1, 64), np.float32))
    cache.update(0, one, one)
    block = 2 * 256 * 8 * 64 * 4
    for _ in range(100):
        cache.update(0, one, one)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(50):
        cache.update(0, one, one)
    mx.synchronize()
    assert mx.get_peak_memory() - before < block // 2


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 2, 3, 4), r"got key \[1, 2, 3, 4\]; takes batch_size 2, num_heads 2, any number of tokens, head_dim 4"),
        ((2, 6, 3, 4), r"got key \[2, 6, 3, 4\]; takes batch_size 2, num_heads 2"),
        ((2, 2, 3, 8), r"got key \[2, 2, 3, 8\]"),
    ],
)
def test_sizes_are_checked(shape: tuple[int, ...], text: str) -> None:
    cache = KVCache(SMALL)
    with pytest.raises(ShapeMismatchError, match=text):
        cache.update(0, Tensor.zeros(shape), Tensor.zeros((2, 2, 3, 4)))
    assert cache.is_empty()


def test_other_mistakes() -> None:
    cache, one = KVCache(SMALL), Tensor.new(entries(1))
    for layer in (3, -1):
        with pytest.raises(InvalidIndexError, match=f"KVCache layer: index {layer} is out of range; takes 0..2"):
            cache.update(layer, one, one)
        with pytest.raises(InvalidIndexError):
            cache.get(layer)
    with pytest.raises(ShapeMismatchError, match="takes as many of both in dim 2"):
        cache.update(0, one, Tensor.new(entries(2)))
    with pytest.raises(Error, match="KVCache update key: got rank 3"):
        cache.update(0, Tensor.zeros((2, 2, 4)), one)
    cache.update(0, one, one)
    with pytest.raises(DTypeMismatchError):
        cache.update(0, one.to_dtype("f16"), one.to_dtype("f16"))
    with pytest.raises(Error, match="KVCache update: got key 3; takes a tensor"):
        cache.update(0, 3, one)
    assert cache.length(0) == 1
    for position in (2, -1, 0.5):
        with pytest.raises(ArgumentValueError, match=f"trim: got position {position}; takes 0 to 1"):
            cache.trim(position)  # type: ignore[arg-type]
    for name in ("max_seq_len", "num_layers", "num_heads", "head_dim", "batch_size"):
        with pytest.raises(InferenceError.InvalidConfig, match=f"{name} is 0; takes an integer from 1"):
            KVCache(KVCacheConfig(**{name: 0}))
