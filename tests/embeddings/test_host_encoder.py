"""Embeddings by NumPy: what MLX gives, whatever the texts are, and which encoders are left to it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle import Device, DType, Var, settings
from metal_candle.device import DeviceType
from metal_candle.embeddings import EmbeddingConfig, EmbeddingModel, host, pooling
from metal_candle.embeddings.encoder import SentenceEncoder
from metal_candle.error import BackwardNotSupportedError, InvalidIndexError, ShapeMismatchError
from metal_candle.models.bert import BertModel, Config
from metal_candle.models.encoder import EncoderLayer
from metal_candle.nn import Activation, LayerNorm, Linear, VarBuilder, VarMap
from metal_candle.tensor import Tensor

import numpy as np
import pytest
import tiny_folder

# Of every length from 2 tokens on, several of most, some alone; 57 letters and two special tokens fill the positions.
TEXTS = ["a b", "c", "d e f", "", "g h", "x " * 57, "i j k l", "m", "", "n o p q r s t u v w"]
# Float32 in another order: some roundings of 6e-8 of values of about 1 through two blocks.
CLOSE = 2e-6


@pytest.fixture(params=["bert", "mpnet"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> EmbeddingModel:
    tiny_folder.write(tmp_path, request.param)
    return EmbeddingModel.from_pretrained(tmp_path)


@pytest.fixture
def bert(tmp_path: Path) -> EmbeddingModel:
    tiny_folder.write(tmp_path)
    return EmbeddingModel.from_pretrained(tmp_path)


def said(model: EmbeddingModel, texts: list[str] = TEXTS) -> tuple[Any, str]:
    """The embeddings, and how they were computed."""
    with settings.captured("graph") as lines:
        found = model.encode(texts).numpy()
    (line,) = [line for line in lines if "batches of texts" in line]
    return found, line


def by_mlx(model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch, texts: list[str] = TEXTS) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(host, "refusal", lambda encoder: "this test asks for it")
        found, line = said(model, texts)
    assert "by MLX, as this test asks for it" in line
    return found


@pytest.mark.parametrize("pools", [("mean",), ("cls", "max"), ("mean_sqrt_len_tokens",)])
@pytest.mark.parametrize("normalize", [True, False])
def test_it_gives_what_mlx_gives(
    model: EmbeddingModel, normalize: bool, pools: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = SentenceEncoder(model.encoder.model, normalize, pools)
    made = EmbeddingModel(encoder, model.tokenizer, model.config())
    found, line = said(made)
    assert "by NumPy" in line
    assert (found.shape, found.dtype) == ((len(TEXTS), 32 * len(pools)), np.float32)
    np.testing.assert_allclose(found, by_mlx(made, monkeypatch), atol=CLOSE, rtol=CLOSE)


def test_a_text_alone_and_one_text_often(model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for texts in (["a b c"], [""], ["a b"] * 70):
        np.testing.assert_allclose(said(model, texts)[0], by_mlx(model, monkeypatch, texts), atol=CLOSE)


def test_it_pools_in_all_ways() -> None:
    assert host._POOLS.keys() == pooling.POOLS.keys()


@pytest.mark.parametrize("pool", list(pooling.POOLS))
def test_texts_without_tokens_are_zero(model: EmbeddingModel, pool: str) -> None:
    encoder = host.HostEncoder(SentenceEncoder(model.encoder.model, True, [pool]), 3)
    found = encoder.encode([[2, 5, 3], [], [2, 3], []])
    np.testing.assert_array_equal(found[[1, 3]], np.zeros((2, 32), np.float32))
    np.testing.assert_array_equal(found[[0, 2]], encoder.encode([[2, 5, 3], [2, 3]]))
    none = host.HostEncoder(model.encoder, 0)
    np.testing.assert_array_equal(none.encode([[], []]), np.zeros((2, 32), np.float32))


@pytest.mark.parametrize("count", [1, 999, 1000, 2500])
def test_gelu_is_that_of_the_error_function(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_BLOCK", 1000)
    special = [0.0, -0.0, 1e-30, 5.5, -5.5, 30.0, -30.0, 1e30, -1e30, np.inf, np.nan]
    x = np.concatenate([np.random.default_rng(0).normal(size=count) * 2, special]).astype(np.float32)
    want = np.array([0.0 if v < -1e6 else 0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    rooms = [np.empty(1000, np.float32) for _ in range(3)]
    host._gelu(x, rooms)
    # The fit is within 9e-8; the rest are roundings of some products near 0.2, and of the result.
    np.testing.assert_allclose(x, want, atol=2e-7, rtol=2e-7)


def test_weights_that_are_set_later_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_folder.write(tmp_path)
    read = EmbeddingModel.from_pretrained(tmp_path)
    variables = VarMap()
    config = read.encoder.model.config
    assert isinstance(config, Config)
    network = BertModel(config, VarBuilder.from_varmap(variables, "f32", Device.Cpu))
    model = EmbeddingModel(SentenceEncoder(network, True), read.tokenizer, EmbeddingConfig(tmp_path))
    first, line = said(model)
    assert "by NumPy" in line
    for var in variables.all_vars():
        var.set(var.as_tensor().affine(0.9, 0.05))
    second = said(model)[0]
    assert np.abs(second - first).max() > 0.01
    np.testing.assert_allclose(second, by_mlx(model, monkeypatch), atol=CLOSE)


def test_layers_of_other_widths_and_without_bias(bert: EmbeddingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = said(bert)[0]
    layer = bert.encoder.model.layers[0]
    layer.up = Linear(Tensor.cat([layer.up.weight(), layer.up.weight()], 0))
    layer.down = Linear(Tensor.cat([layer.down.weight(), layer.down.weight()], 1))
    layer.norm = LayerNorm.new_no_bias(layer.norm.weight(), 1e-3)
    # What MLX replays was traced with the biases: another model has no plan yet.
    model = EmbeddingModel(bert.encoder, bert.tokenizer, bert.config())
    found, line = said(model)
    assert "by NumPy" in line
    assert np.abs(found - before).max() > 0.01
    np.testing.assert_allclose(found, by_mlx(model, monkeypatch), atol=CLOSE)


def test_ids_outside_the_table(bert: EmbeddingModel) -> None:
    size = bert.encoder.model.config.vocab_size
    encoder = host.HostEncoder(bert.encoder, 4)
    assert encoder.encode([[2, size - 1, 3]]).shape == (1, 32)
    with pytest.raises(InvalidIndexError, match=f"embedding.*{size}"):
        encoder.encode([[2, 3], [2, size, 3]])


@pytest.mark.parametrize("way", [None, "this test asks for it"])
def test_texts_that_the_tokenizer_does_not_cut(
    model: EmbeddingModel, way: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "refusal", lambda encoder: way)
    most = model.config().max_seq_length
    model.tokenizer.truncate(most + 1)
    for config in (model.config(), EmbeddingConfig("it", max_seq_length=512)):
        made = EmbeddingModel(model.encoder, model.tokenizer, config)
        # Padding goes no further than the positions, either.
        assert np.isfinite(made.encode(["a", "x " * (most - 2)]).numpy()).all()
        with pytest.raises(ShapeMismatchError, match=f"encode: got {most + 1} tokens for text 1; takes at most {most}"):
            made.encode(["a", "x " * (most - 1)])


@pytest.mark.parametrize("way", [None, "this test asks for it"])
def test_no_gradient_comes_silently_to_nothing(
    bert: EmbeddingModel, way: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "refusal", lambda encoder: way)
    assert not bert.encode(["a"]).sum_all().backward()
    layer = bert.encoder.model.layers[0]
    layer.up = Linear(Var.from_tensor(layer.up.weight()).as_tensor(), layer.up.bias())
    model = EmbeddingModel(bert.encoder, bert.tokenizer, bert.config())
    loss = model.encode(["a", "b c"]).sum_all()
    with pytest.raises(BackwardNotSupportedError):
        loss.backward()


def test_infinite_weights_give_what_they_give_without_a_warning(model: EmbeddingModel) -> None:
    layer = model.encoder.model.layers[0]
    layer.up = Linear(layer.up.weight().affine(1e38, 0.0), layer.up.bias())
    found, line = said(model)
    assert "by NumPy" in line
    assert not np.isfinite(found).any()


FORKED = """
import os
import sys
import threading
import numpy as np
from metal_candle.embeddings import EmbeddingModel

model = EmbeddingModel.from_pretrained(sys.argv[1])
texts = ["a b c d e f g h i j k l"] * 30
before = model.encode(texts).numpy()
child = os.fork()
if not child:
    threading.Timer(120, os._exit, [2]).start()
    os._exit(0 if np.array_equal(model.encode(texts).numpy(), before) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_encodes_where_mlx_would_wait_for_ever(tmp_path: Path) -> None:
    tiny_folder.write(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path)]  # Python warns of forks beside threads
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("0\n", "")


# --- what is left to MLX ----------------------------------------------------------------------


class _Scaled(Linear):
    """A layer with a ``forward`` of its own."""

    def forward(self, xs: Any) -> Any:
        return super().forward(xs).affine(2.0, 0.0)


class _Block(EncoderLayer):
    pass


class _Network(BertModel):
    pass


class _Centred(SentenceEncoder):
    def encode(self, input_ids: Any, attention_mask: Any) -> Any:
        found = super().encode(input_ids, attention_mask)
        return found.broadcast_sub(found.mean_keepdim(1))


def _set(model: Any, name: str, value: Any) -> None:
    setattr(model, name, value)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "layer 1's query is a _Scaled, not a plain Linear": lambda model: _set(
        model.layers[1], "query", _Scaled(model.layers[1].query.weight())
    ),
    "layer 1's norm does not remove the mean": lambda model: _set(
        model.layers[1], "norm", LayerNorm.rms_norm(model.layers[1].norm.weight(), 1e-5)
    ),
    "embedding_norm does not remove the mean": lambda model: _set(
        model, "embedding_norm", LayerNorm.rms_norm(model.embedding_norm.weight(), 1e-5)
    ),
    "layer 0's activation is Activation.Relu, not Activation.Gelu": lambda model: _set(
        model.layers[0], "activation", Activation.Relu
    ),
    "layer 0 is a _Block, not a plain EncoderLayer": lambda model: _set(model.layers[0], "__class__", _Block),
    "_Network is neither a BertModel nor an MPNetModel": lambda model: _set(model, "__class__", _Network),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_what_was_changed_is_computed_by_mlx(reason: str, bert: EmbeddingModel) -> None:
    CHANGES[reason](bert.encoder.model)
    assert host.refusal(bert.encoder) == reason
    found, line = said(bert)
    assert f"by MLX, as {reason}" in line
    wanted = [bert.encoder.forward(Tensor.new([bert.tokenizer.encode(text, True)], dtype="u32")) for text in TEXTS]
    np.testing.assert_allclose(found, np.concatenate([one.numpy() for one in wanted]), atol=CLOSE)


def test_an_encoder_of_its_own_way(bert: EmbeddingModel) -> None:
    encoder = _Centred(bert.encoder.model, True)
    found, line = said(EmbeddingModel(encoder, bert.tokenizer, replace(bert.config())))
    assert "by MLX, as _Centred encodes in a way of its own" in line
    np.testing.assert_allclose(found.mean(1), np.zeros(len(TEXTS)), atol=1e-6)


def test_halves_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_folder.write(tmp_path)
    half = EmbeddingModel.from_pretrained(tmp_path, dtype=DType.BF16)
    assert "by MLX, as the model is in bf16" in said(half)[1]
    monkeypatch.setattr(half.encoder.model, "device", Device(DeviceType.Metal, 0))
    assert host.refusal(half.encoder) == f"the model is on {Device(DeviceType.Metal, 0)!r}"
