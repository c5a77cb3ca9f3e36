"""The generator's caches: what is seen of earlier tokens, what memory they take, when they are full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Tensor
from metal_candle.error import InferenceError
from metal_candle.inference import Generator, GeneratorConfig, PromptCache
from metal_candle.inference.host import HostPlan
from metal_candle.inference.step import CachedStep
from metal_candle.models import Decoder, load_model
from metal_candle.models.layout import AtTables
from metal_candle.nn.kv_cache import KvBuffer, Span
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig

import mlx.core as mx
import numpy as np
import pytest

ModelDir = Callable[..., Path]
IDS = np.random.default_rng(3).integers(3, 64, size=40).tolist()
# float32 through two layers, in other orders of summation.
CLOSE = 2e-5


@pytest.fixture
def model(tiny_model_dir: ModelDir) -> Decoder:
    # Where the head is the embeddings' table, a random model says the same token again and again.
    return load_model(tiny_model_dir(eos_token_id=None, tie_word_embeddings=False)).model


@pytest.fixture(params=["numpy", "mlx"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "mlx":
        monkeypatch.setattr(HostPlan, "refusal", staticmethod(lambda output: "off"))


def masked_forward(model: Decoder, ids: list[int], window: int, keep: int) -> np.ndarray:
    """All logits, in one call: position q sees p where q - p < window or p < keep."""
    q, p = np.arange(len(ids))[:, None], np.arange(len(ids))[None, :]
    seen = (p <= q) & ((q - p < window) | (p < keep))
    mask = Tensor.new(np.where(seen, 0.0, -1e9).astype(np.float32))
    cos, sin = model.rotary.tables(0, len(ids))
    layout = AtTables(cos, sin, {None: mask})
    return model.forward(Tensor.new([ids], dtype="u32"), None, layout).numpy()[0]


def steps(model: Decoder, ids: list[int], prompt: int, config: GeneratorConfig) -> np.ndarray:
    step = CachedStep(model, config)
    return np.array([step.feed(ids[:prompt]), *(step.feed([i]) for i in ids[prompt:])])


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("keep", [0, 1, 3])
@pytest.mark.parametrize("prompt", [1, 2, 7, 8, 30])
def test_rotating_sees_the_last_and_the_first(model: Decoder, keep: int, prompt: int) -> None:
    wanted = masked_forward(model, IDS, 8 - keep, keep)[prompt - 1 :]
    for chunk in (512, 5):
        config = GeneratorConfig(cache="rotating", max_kv_size=8, keep=keep, prefill_chunk=chunk)
        np.testing.assert_allclose(steps(model, IDS, prompt, config), wanted, atol=CLOSE)


def test_a_window_of_a_block_counts_too(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir("mistral", sliding_window=5, eos_token_id=None)).model
    wide = GeneratorConfig(cache="rotating", max_kv_size=30, keep=2)
    np.testing.assert_allclose(steps(model, IDS, 4, wide), steps(model, IDS, 4, GeneratorConfig()), atol=CLOSE)


@pytest.mark.parametrize("arrays", [np, mx], ids=["numpy", "mlx"])
@pytest.mark.parametrize(("window", "keep"), [(3, 0), (3, 2), (1, 4), (300, 7)])
@pytest.mark.parametrize("begin", [1, 5, 330])
def test_a_window_takes_no_more_memory_as_it_moves_on(arrays: Any, window: int, keep: int, begin: int) -> None:
    entries = np.random.default_rng(0).normal(size=(1, 1, 1200, 2)).astype(np.float32)
    buffer, span = KvBuffer(window, keep), Span(window, keep)
    buffer.start(arrays, arrays.array(entries[:, :, span.held(begin)]))
    for count in range(begin, 1200):
        shown = buffer.append(arrays.array(entries[:, :, count : count + 1]))
        if count % 97 == 0 or count < begin + 20:
            seen = [p for p in range(count + 1) if count - p < window or p < keep]
            np.testing.assert_array_equal(np.sort(np.array(shown), axis=2), np.sort(entries[:, :, seen], axis=2))
    assert buffer._block.shape[2] <= window + keep + 512


def test_fixed_is_made_at_once_and_is_full_in_the_end(model: Decoder) -> None:
    config = GeneratorConfig(cache="fixed", max_kv_size=10)
    step = CachedStep(model, config)
    step.feed(IDS[:4])
    blocks = [buffer._block for pair in step._buffers for buffer in pair]
    assert all(block.shape[2] == 10 for block in blocks)
    for i in IDS[4:10]:
        step.feed([i])
    assert all(buffer._block is block for block, buffer in zip(blocks, (b for pair in step._buffers for b in pair)))
    tokens = Generator(model, config).stream(IDS[:4])
    growing = Generator(model, GeneratorConfig(max_tokens=7)).generate(IDS[:4])[4:]
    assert [next(tokens).token_id for _ in range(7)] == growing  # the last of them needs no place
    with pytest.raises(InferenceError.CacheFull, match="KV-cache full: position 11 of 10"):
        next(tokens)
    with pytest.raises(InferenceError.CacheFull, match="KV-cache full: position 11 of 10"):
        Generator(model, config).generate(IDS[:11])


def test_rotating_goes_on_beyond_the_context(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir(max_position_embeddings=16, eos_token_id=None)).model
    config = GeneratorConfig(cache="rotating", max_kv_size=12, max_tokens=40)
    assert len(Generator(model, config).generate(IDS[:20])) == 60


def test_any_size_of_pieces_gives_the_same_logits(model: Decoder) -> None:
    whole = CachedStep(model).feed(IDS)
    for chunk in (1, 7, 39, 40):
        seen: list[int] = []
        found = CachedStep(model, GeneratorConfig(prefill_chunk=chunk)).feed(IDS, seen.append)
        np.testing.assert_allclose(found, whole, atol=CLOSE)
        assert seen == [*range(0, 40, chunk), 40]


def test_progress_counts_the_prompt(model: Decoder) -> None:
    seen: list[tuple[int, int]] = []
    config = GeneratorConfig(prefill_chunk=16, max_tokens=3)
    Generator(model, config).generate(IDS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 40), (16, 40), (32, 40), (40, 40)]


# --- a prompt cache ---------------------------------------------------------------------------


def test_the_common_beginning_is_not_computed_again(model: Decoder) -> None:
    config, cache = GeneratorConfig(max_tokens=6), PromptCache()
    generator = Generator(model, config)
    first = generator.generate(IDS[:10], prompt_cache=cache)
    assert first == generator.generate(IDS[:10])
    assert (len(cache), cache.reused) == (15, 0)  # the last token was not read
    turn = [*first, *IDS[20:25]]
    assert generator.generate(turn, prompt_cache=cache) == generator.generate(turn)
    assert cache.reused == 15
    other = [*turn[:12], *IDS[30:33]]
    assert generator.generate(other, prompt_cache=cache) == generator.generate(other)
    assert cache.reused == 12
    assert generator.generate(other, prompt_cache=cache) == generator.generate(other)
    assert cache.reused == len(other) - 1  # one is read for its logits
    assert generator.generate([60], prompt_cache=cache) == generator.generate([60])
    assert cache.reused == 0
    cache.clear()
    assert (len(cache), repr(cache)) == (0, "PromptCache(0 tokens, reused=0)")


def test_nothing_is_taken_over_from_another_model_or_adapter(model: Decoder, tiny_model_dir: ModelDir) -> None:
    cache, config = PromptCache(), GeneratorConfig(max_tokens=4)
    Generator(model, config).generate(IDS[:10], prompt_cache=cache)
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2))
    adapter.set_training(False)

    def reused(model: Decoder, config: GeneratorConfig = config) -> int:
        found = Generator(model, config).generate(IDS[:10], prompt_cache=cache)
        assert found == Generator(model, config).generate(IDS[:10])
        return cache.reused

    assert reused(model) == 9
    model.apply_adapter(adapter)
    assert reused(model) == 0
    assert reused(model) == 9
    for var in adapter.trainable_variables():
        var.set(Tensor.from_mlx(mx.random.normal(tuple(var.shape), key=mx.random.key(1))))
    assert reused(model) == 0
    model.remove_adapter()
    assert reused(model) == 0
    assert reused(load_model(tiny_model_dir(seed=1, eos_token_id=None)).model) == 0
    assert reused(model, GeneratorConfig(max_tokens=4, cache="fixed", max_kv_size=30)) == 0
    assert reused(model, GeneratorConfig(max_tokens=4, cache="fixed", max_kv_size=30)) == 9


def test_a_rotating_cache_that_has_let_go_is_read_anew(model: Decoder) -> None:
    config, cache = GeneratorConfig(max_tokens=4, cache="rotating", max_kv_size=20), PromptCache()
    for count, reused in ((10, 0), (16, 10), (30, 0), (31, 0)):
        found = Generator(model, config).generate(IDS[:count], prompt_cache=cache)
        assert found == Generator(model, config).generate(IDS[:count])
        assert cache.reused == reused


def test_a_stream_that_is_left_hands_on_what_it_has_read(model: Decoder) -> None:
    cache, config = PromptCache(), GeneratorConfig(max_tokens=30)
    stream = Generator(model, config).stream(IDS[:10], prompt_cache=cache)
    tokens = [next(stream).token_id for _ in range(3)]
    other = Generator(model, config).generate(IDS[:10], prompt_cache=cache)  # meanwhile: from nothing
    assert cache.reused == 0
    assert other == Generator(model, config).generate(IDS[:10])
    stream.close()
    turn = [*IDS[:10], *tokens, 5]
    assert Generator(model, config).generate(turn, prompt_cache=cache) == Generator(model, config).generate(turn)
    assert cache.reused == 12


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cache": "ring"}, "cache is 'ring'; takes growing, fixed, rotating"),
        ({"max_kv_size": 5}, "max_kv_size is 5; takes cache='fixed' or 'rotating' with it"),
        ({"cache": "fixed", "max_kv_size": 0}, "max_kv_size is 0; takes an integer from 1"),
        ({"cache": "rotating"}, "max_kv_size is None for a rotating cache; takes more than keep, which is 4"),
        ({"cache": "rotating", "max_kv_size": 4}, "max_kv_size is 4 for a rotating cache; takes more than keep"),
        ({"cache": "rotating", "max_kv_size": 9, "keep": -1}, "keep is -1; takes an integer from 0"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0; takes an integer from 1"),
    ],
)
def test_settings_that_make_no_cache(model: Decoder, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InferenceError.InvalidConfig) as caught:
        Generator(model, GeneratorConfig(**settings))
    assert text in str(caught.value)


def test_a_model_that_keeps_nothing_has_no_cache() -> None:
    class Plain:
        def forward(self, ids: Tensor) -> Tensor:
            return Tensor.zeros((1, ids.dim(1), 8))

    with pytest.raises(InferenceError.InvalidConfig, match="cache is 'fixed', but Plain keeps no keys and values"):
        Generator(Plain(), GeneratorConfig(cache="fixed", max_kv_size=9)).generate([1])
    with pytest.raises(InferenceError.InvalidConfig, match="prompt_cache: the model is a Plain; takes a Decoder"):
        Generator(Plain()).generate([1], prompt_cache=PromptCache())


def test_rotating_is_mlx_lms_where_the_prompt_fits(tiny_model_dir: ModelDir) -> None:
    utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import RotatingKVCache

    folder = tiny_model_dir(eos_token_id=None, tie_word_embeddings=False)
    theirs, _ = utils.load_model(folder)
    config = GeneratorConfig(cache="rotating", max_kv_size=12, max_tokens=40)
    model = load_model(folder).model
    found = list(Generator(model, config).stream(IDS[:10]))
    cache = [RotatingKVCache(12, keep=4) for _ in range(2)]
    wanted = list(generate_step(mx.array(IDS[:10]), theirs, max_tokens=40, prompt_cache=cache))
    assert [token.token_id for token in found] == [int(token) for token, _ in wanted]
    chances = [float(mx.exp(logarithms[int(token)])) for token, logarithms in wanted]
    np.testing.assert_allclose([token.probability for token in found], chances, rtol=1e-3)
    growing = Generator(model, GeneratorConfig(max_tokens=40)).generate(IDS[:10])[10:]
    assert [token.token_id for token in found] != growing
