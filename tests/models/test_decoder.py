"""The decoder against a NumPy float64 one and, where it is installed, against transformers; its cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from metal_candle import LazyTensor, Tensor
from metal_candle.error import InvalidIndexError
from metal_candle.inference import GeneratorConfig
from metal_candle.inference.step import CachedStep
from metal_candle.models.load import load_model
from metal_candle.nn.kv_cache import KvBuffer

import mlx.core as mx
import numpy as np
import plain_decoder
import pytest

ModelDir = Callable[..., Path]

IDS = [5, 17, 3, 60, 22, 22, 41, 8, 33, 0, 63, 12]
SECOND = [9, 1, 2, 3, 44, 45, 46, 50, 51, 52, 53, 54]

# float32 against float64: logits are below 4 and a handful of roundings of 6e-8 each add up on the way.
CLOSE = 1e-5

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Of this head's four wave lengths 6, 63, 628 and 6283 one is kept, one blended, and two are stretched.
    "original_max_position_embeddings": 128,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, untied, with biases": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, a head for each head": {"model_type": "llama", "num_key_value_heads": 4},
    "llama, rope scaled as llama 3": {"model_type": "llama", "rope_scaling": LLAMA3},
    "llama, rope scaled linearly": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "tie_word_embeddings": False},
    "mistral, window shorter than the text": {"model_type": "mistral", "sliding_window": 4},
    "mistral, window longer than the text": {"model_type": "mistral", "sliding_window": 40},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, window in the upper layer": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3, heads wider than the hidden state": {"model_type": "qwen3", "head_dim": 16},
}
each_case = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())


def plain(model: Any, ids: list[int]) -> Any:
    weights = {name: tensor.numpy() for name, tensor in model.weights().items()}
    return plain_decoder.logits(model.config, weights, ids)


@each_case
def test_logits_are_those_of_the_plain_decoder(tiny_model_dir: ModelDir, settings: dict[str, Any]) -> None:
    model = load_model(tiny_model_dir(**settings)).model
    eager = model.forward(Tensor.new([IDS], dtype="u32"))
    np.testing.assert_allclose(eager.numpy()[0], plain(model, IDS), atol=CLOSE)
    recorded = model.forward(LazyTensor.new([IDS], dtype="u32"))
    assert isinstance(recorded, LazyTensor)
    np.testing.assert_allclose(recorded.numpy()[0], eager.numpy()[0], atol=1e-6)


@each_case
def test_a_batch_is_its_rows(tiny_model_dir: ModelDir, settings: dict[str, Any]) -> None:
    model = load_model(tiny_model_dir(**settings)).model
    both = model.forward(Tensor.new([IDS, SECOND], dtype="u32")).numpy()
    np.testing.assert_allclose(both[0], plain(model, IDS), atol=CLOSE)
    np.testing.assert_allclose(both[1], plain(model, SECOND), atol=CLOSE)


@each_case
def test_the_cache_continues_where_the_text_was_left(tiny_model_dir: ModelDir, settings: dict[str, Any]) -> None:
    model = load_model(tiny_model_dir(**settings)).model
    whole, caches, parts = plain(model, IDS), model.new_caches(), []
    for piece in (IDS[:3], IDS[3:4], IDS[4:9], IDS[9:]):
        parts.append(model.forward(Tensor.new([piece], dtype="u32"), caches).numpy()[0])
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=CLOSE)
    assert caches[0].current_seq_len() == len(IDS)


@each_case
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_replayed_step_continues_too(tiny_model_dir: ModelDir, settings: dict[str, Any], dtype: str) -> None:
    model = load_model(tiny_model_dir(**settings), dtype).model
    step, whole = CachedStep(model), plain(model, IDS)
    # The bfloat16 steps round to 3 decimal digits after each of some 40 operations; f32 runs with NumPy.
    tolerance = CLOSE if dtype == "f32" else 0.15
    np.testing.assert_allclose(step.feed(IDS[:6]), whole[5], atol=tolerance)
    for i in range(6, len(IDS)):
        np.testing.assert_allclose(step.feed([IDS[i]]), whole[i], atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 5, 100])
def test_a_long_prompt_is_read_in_pieces(tiny_model_dir: ModelDir, chunk: int) -> None:
    model = load_model(tiny_model_dir("mistral", sliding_window=4)).model
    step = CachedStep(model, GeneratorConfig(prefill_chunk=chunk))
    np.testing.assert_allclose(step.feed(IDS), plain(model, IDS)[-1], atol=CLOSE)


def test_what_follows_is_not_seen(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir()).model
    changed = [*IDS[:-1], 7]
    before, after = (model.forward(Tensor.new([ids], dtype="u32")).numpy()[0] for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:-1], after[:-1])
    assert np.abs(before[-1] - after[-1]).max() > 0.1


def test_an_id_outside_the_vocabulary_is_refused(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir()).model
    with pytest.raises(InvalidIndexError, match=r"embedding: index 64 is out of range; takes 0..63"):
        model.forward(Tensor.new([[3, 64]], dtype="u32"))


def test_counts_and_names(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir(tie_word_embeddings=False)).model
    # 2 · 64·32 embeddings and head; per layer q, o 32·32, k, v 16·32, three of 64·32, two norms; the last norm.
    assert model.num_parameters() == 2 * 64 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 64) + 32
    assert (model.vocab_size(), model.num_layers(), len(model.projections())) == (64, 2, 14)
    assert set(load_model(tiny_model_dir()).model.weights()) == set(model.weights()) - {"lm_head.weight"}


@pytest.mark.parametrize("arrays", [np, mx], ids=["numpy", "mlx"])
def test_a_buffer_grows_and_shows_its_window(arrays: Any) -> None:
    entries = np.random.default_rng(0).normal(size=(1, 2, 700, 4)).astype(np.float32)
    whole, windowed = KvBuffer(), KvBuffer(window=3)
    for buffer in (whole, windowed):
        buffer.start(arrays, arrays.array(entries[:, :, :2]))
    for i in range(2, 700):
        new = arrays.array(entries[:, :, i : i + 1])
        shown, last = whole.append(new), windowed.append(new)
    np.testing.assert_array_equal(np.array(shown), entries)
    np.testing.assert_array_equal(np.array(last), entries[:, :, -3:])


# --- transformers, where it is installed ------------------------------------------------------


@each_case
def test_logits_are_those_of_transformers(tiny_model_dir: ModelDir, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="transformers runs on torch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tiny_model_dir(**settings)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS, SECOND])).logits.numpy()
    found = load_model(folder).model.forward(Tensor.new([IDS, SECOND], dtype="u32")).numpy()
    # Both are float32, each some 1e-6 from the exact value.
    np.testing.assert_allclose(found, wanted, atol=CLOSE)


def test_rotary_tables_that_another_thread_makes_longer(tiny_model_dir: ModelDir, monkeypatch: Any) -> None:
    model = load_model(tiny_model_dir()).model
    wanted, inside = np.cos(np.arange(300)[:, None] * model.rotary._frequencies), list[Any]()

    def cos(angles: Any) -> Any:
        if not inside:  # as if this thread were interrupted here
            inside.append(None)
            inside[0] = model.rotary.rows(0, 300)[0]
        return np.cos(angles)

    monkeypatch.setattr("metal_candle.models.rotary.np", SimpleNamespace(**{**vars(np), "cos": cos}))
    outside = model.rotary.rows(0, 300)[0]
    np.testing.assert_allclose([inside[0], outside], [wanted] * 2, atol=1e-6)
