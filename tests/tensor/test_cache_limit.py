"""The bound on MLX's cache: kept through batches of changing shapes, set back afterwards, read from the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from metal_candle import ArgumentValueError, TrainingError, settings
from metal_candle.models import load_model
from metal_candle.tensor.cache_limit import MOST, bounded_cache, cache_limit
from metal_candle.tensor.memory import device_memory
from metal_candle.training import AdapterTrainer, LoRAAdapter, TrainingConfig
from metal_candle.training.memory import batch_of

import mlx.core as mx
import pytest

MIB = 1 << 20


@pytest.fixture(autouse=True)
def large_limit() -> Iterator[None]:
    """As on Apple's GPUs, where MLX keeps nearly everything."""
    before = mx.set_cache_limit(1 << 30)
    mx.clear_cache()
    yield
    mx.set_cache_limit(before)
    mx.clear_cache()


def limit() -> int:
    found = mx.set_cache_limit(0)
    mx.set_cache_limit(found)
    return found


def fill(count: int) -> int:
    """Make and free arrays of many sizes; the most that MLX kept of them."""
    most = 0
    for i in range(1, count):
        array = mx.zeros((i * 64 * 1024,))
        mx.eval(array)
        del array
        most = max(most, mx.get_cache_memory())
    return most


def test_without_a_bound_the_cache_grows() -> None:
    assert fill(24) > 32 * MIB


def test_cache_stays_below_the_bound_and_the_limit_is_set_back() -> None:
    with bounded_cache(8 * MIB):
        assert fill(24) <= 8 * MIB
    assert limit() == 1 << 30


def test_what_is_cached_already_is_given_back() -> None:
    fill(24)
    with bounded_cache(4 * MIB):
        assert mx.get_cache_memory() <= 4 * MIB


def test_a_lower_limit_stays() -> None:
    mx.set_cache_limit(3 * MIB)
    with bounded_cache(8 * MIB):
        assert limit() == 3 * MIB
    assert limit() == 3 * MIB


def test_the_limit_is_set_back_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), bounded_cache(MIB):
        raise KeyboardInterrupt
    assert limit() == 1 << 30


def test_blocks_that_end_in_another_order_than_they_began() -> None:
    """As those of threads do."""
    first, second = bounded_cache(8 * MIB), bounded_cache(2 * MIB)
    first.__enter__()
    second.__enter__()
    assert limit() == 2 * MIB
    first.__exit__(None, None, None)
    assert limit() == 2 * MIB
    second.__exit__(None, None, None)
    assert limit() == 1 << 30
    with bounded_cache(2 * MIB):
        with bounded_cache(8 * MIB):
            assert limit() == 2 * MIB
        assert limit() == 2 * MIB
    assert limit() == 1 << 30


@pytest.mark.parametrize(("value", "wanted"), [("1000", 1000), ("512M", 512 * MIB), ("2 GiB", 2 << 30), ("3kb", 3072)])
def test_environment(value: str, wanted: int) -> None:
    with settings.CACHE_LIMIT.override(value):
        assert cache_limit() == wanted


def test_environment_off_default_and_nonsense() -> None:
    with settings.CACHE_LIMIT.override("off"), bounded_cache():
        assert limit() == 1 << 30
    with settings.CACHE_LIMIT.override(""):
        assert cache_limit() == min(MOST, device_memory() // 8)
    with (
        settings.CACHE_LIMIT.override("plenty"),
        pytest.raises(ArgumentValueError, match="METAL_CANDLE_CACHE_LIMIT: got"),
    ):
        cache_limit()


def test_training_with_changing_shapes(tiny_model_dir: Callable[..., Path]) -> None:
    """The cache is below the bound after every step and evaluation; the program's own limit holds outside."""
    model = load_model(tiny_model_dir(max_position_embeddings=512)).model
    trainer = AdapterTrainer(model, LoRAAdapter.for_model(model), TrainingConfig(cache_limit=MIB))
    seen = []
    for length in (16, 96, 48, 160, 32, 128):
        trainer.train_step([batch_of(2, length)])
        seen.append(mx.get_cache_memory())
    assert max(seen) <= MIB
    assert limit() == 1 << 30
    with pytest.raises(TrainingError.InvalidConfig, match="cache_limit is -1; takes at least 0"):
        TrainingConfig(cache_limit=-1).validate()
