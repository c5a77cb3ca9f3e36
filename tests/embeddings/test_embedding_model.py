"""Texts to embeddings: on tiny random folders against a NumPy encoder, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Device, DType, blas, settings
from metal_candle.embeddings import (
    BertEncoder,
    EmbeddingConfig,
    EmbeddingModel,
    EmbeddingModelType,
    cores,
    host,
    loader,
)
from metal_candle.error import ArgumentTypeError, ArgumentValueError, EmbeddingError
from metal_candle.formats import sharded
from metal_candle.models import bert
from metal_candle.models.mpnet import MPNetModel
from metal_candle.nn import VarBuilder
from metal_candle.tensor import Tensor

import mlx.core as mx
import numpy as np
import plain_encoder
import pytest
import tiny_folder

TEXTS = ["hello world", "a", "the quick brown fox jumps", "", "b c d e f g h i j k l m n o p q r s t u v w"]
# Sums in float32 over other numbers of tokens and texts: some roundings of 6e-8 of values of about 1.
CLOSE = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedding") / "tiny"
    tiny_folder.write(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> EmbeddingModel:
    return EmbeddingModel.from_pretrained(folder)


def plain(kind: str, folder: Path, text: str) -> Any:
    """The last hidden states of a text by NumPy."""
    made = tiny_folder.tokenizer()
    made.no_truncation()
    made.no_padding()
    config = loader.load_config(folder)
    weights = {name: np.array(value) for name, value in loader.read_weights(folder).items()}
    ids = made.encode(text).ids
    return plain_encoder.hidden_states(kind, config, weights, ids, [0] * len(ids))


def unit(rows: Any) -> Any:
    return np.stack([row / np.linalg.norm(row) for row in rows])


# --- encoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_embeddings_are_normed_means_in_the_order_of_the_texts(kind: str, tmp_path: Path) -> None:
    tiny_folder.write(tmp_path, kind)
    model = EmbeddingModel.from_pretrained(tmp_path)
    assert isinstance(model.encoder.model, MPNetModel) == (kind == "mpnet")
    found = model.encode(TEXTS, batch_size=2)
    assert (found.dims(), found.dtype) == ([5, 32], DType.F32)
    np.testing.assert_allclose(found.numpy(), unit([plain(kind, tmp_path, t).mean(0) for t in TEXTS]), atol=CLOSE)
    assert (model.dimension(), model.model_type()) == (32, None)


def test_neither_batches_nor_padding_change_a_result(model: EmbeddingModel) -> None:
    whole = model.encode(TEXTS).numpy()
    for size in (1, 2, 3):
        np.testing.assert_allclose(model.encode(TEXTS, batch_size=size).numpy(), whole, atol=CLOSE)
    np.testing.assert_allclose(model.encode(TEXTS[::-1]).numpy()[::-1], whole, atol=CLOSE)
    alone = np.concatenate([model.encode([text]).numpy() for text in TEXTS])
    np.testing.assert_allclose(alone, whole, atol=CLOSE)
    assert np.abs(whole[0] - whole[1]).max() > 0.05


def test_lengths_share_few_plans(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "refusal", lambda encoder: "plans are MLX's")
    model = EmbeddingModel.from_pretrained(folder)
    model.encode(["a" * count for count in range(1, 41)], batch_size=1)
    assert len(model._encode._plans) == 11  # 3 to 42 tokens in steps of 4


def test_batches_are_bounded_and_cover_the_texts_in_order(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "count", lambda: 2)
    rows = [[7] * count for count in (*[59] * 3, *[30] * 20, *[3] * 60)]
    padded = model._padded
    batches = model._batches(rows, 32, padded)
    assert [row for batch in batches for row in batch] == rows
    # The longest text has 60 tokens; 30 count as 32, and 3 as 4.
    assert [len(batch) for batch in batches] == [4, 8, 8, 8, 32, 23]
    assert [len(batch) for batch in model._batches(rows, 3, padded)] == [3] * 27 + [2]
    # Two cores share what is little, but 64 tokens are not divided.
    assert [len(batch) for batch in model._batches(rows[-48:], 32, padded)] == [24, 24]
    assert [len(batch) for batch in model._batches(rows[-16:], 32, padded)] == [16]
    # NumPy computes no padding, and a text may have no token.
    assert [len(batch) for batch in model._batches(rows[-48:], 32, len)] == [24, 24]
    assert [len(batch) for batch in model._batches(rows[-21:], 32, len)] == [21]
    assert [len(batch) for batch in model._batches([[7], [], []], 2, len)] == [2, 1]


@pytest.mark.parametrize("way", ["NumPy", "MLX"])
@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_all_cores_at_once_give_what_one_gives(
    kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_folder.write(tmp_path, kind)
    if way == "MLX":
        monkeypatch.setattr(host, "refusal", lambda encoder: "this test asks for it")
    can_be_single = blas.numpy_can_be_single if way == "NumPy" else blas.can_be_single
    texts = [f"{'a ' * (i % 40)}b {'c ' * (i % 7)}" for i in range(100)]
    found = {}
    for count in (1, 2):
        monkeypatch.setattr(cores, "count", lambda count=count: count)
        model = EmbeddingModel.from_pretrained(tmp_path)
        with settings.captured("graph") as lines:
            found[count] = model.encode(texts).numpy()
        said = [line for line in lines if "batches of texts" in line]
        how = "one after the other, as there is one core"
        if count == 2:
            how = "on all cores at once" if can_be_single() else "one after the other, as the BLAS"
        assert len(said) == 1
        assert how in said[0]
        assert f"by {way}" in said[0]
    np.testing.assert_allclose(found[1], found[2], atol=CLOSE)
    wanted = unit([plain(kind, tmp_path, text).mean(0) for text in texts[:41]])
    np.testing.assert_allclose(found[2][:41], wanted, atol=CLOSE)


def test_without_normalising_the_mean_itself(folder: Path) -> None:
    model = EmbeddingModel.from_config(EmbeddingConfig(folder, normalize=False))
    wanted = np.stack([plain("bert", folder, text).mean(0) for text in TEXTS])
    np.testing.assert_allclose(model.encode(TEXTS).numpy(), wanted, atol=CLOSE)


def test_long_texts_are_cut_between_the_special_tokens(folder: Path) -> None:
    cut = EmbeddingModel.from_config(EmbeddingConfig(folder, max_seq_length=6))
    np.testing.assert_allclose(cut.encode(["a b c d e f"]).numpy(), cut.encode(["a b c d"]).numpy(), atol=CLOSE)
    assert np.abs(cut.encode(["a b c d"]).numpy() - cut.encode(["a b c"]).numpy()).max() > 0.01
    # The tokenizer's file says 9, the model has positions for 60: the file's own settings are somebody's last call.
    whole = EmbeddingModel.from_pretrained(folder)
    assert whole.config().max_seq_length == 60
    assert whole.encode(["z " * 100]).dims() == [1, 32]
    assert np.abs(whole.encode(["a " * 20]).numpy() - whole.encode(["a " * 7]).numpy()).max() > 0.001


def test_the_folder_may_set_the_longest_text(tmp_path: Path) -> None:
    tiny_folder.write(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    assert EmbeddingModel.from_pretrained(tmp_path).config().max_seq_length == 12
    assert EmbeddingModel.from_config(EmbeddingConfig(tmp_path, max_seq_length=5)).config().max_seq_length == 5


WAYS: dict[str, Callable[[Any], Any]] = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len": lambda x: x.sum(0) / np.sqrt(len(x)),
}


@pytest.mark.parametrize(
    ("pooling", "ways"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode_max_tokens": True}, ["max"]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ["mean_sqrt_len"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ["cls", "mean"]),
        ({"pooling_mode": "cls"}, ["cls"]),
        ({"pooling_mode": ["mean", "max"]}, ["max", "mean"]),
    ],
)
def test_pooling_as_the_folder_says(pooling: dict[str, Any], ways: list[str], tmp_path: Path) -> None:
    tiny_folder.write(tmp_path, modules=["Transformer", "Pooling", "Normalize"], pooling=pooling)
    model = EmbeddingModel.from_config(EmbeddingConfig(tmp_path, normalize=False))
    assert model.dimension() == 32 * len(ways)
    states = [plain("bert", tmp_path, text) for text in TEXTS]
    wanted = np.stack([np.concatenate([WAYS[way](x) for way in ways]) for x in states])
    np.testing.assert_allclose(model.encode(TEXTS).numpy(), wanted, atol=CLOSE)


def test_weights_that_torch_wrote(tmp_path: Path, model: EmbeddingModel) -> None:
    torch = pytest.importorskip("torch", reason="writes the file, and is not installed")
    weights = tiny_folder.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: torch.tensor(value) for name, value in weights.items()}, tmp_path / "pytorch_model.bin")
    found = EmbeddingModel.from_pretrained(tmp_path).encode(TEXTS)
    np.testing.assert_array_equal(found.numpy(), model.encode(TEXTS).numpy())


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_halves_give_float32_rows_of_unit_length(dtype: str, folder: Path, model: EmbeddingModel) -> None:
    found = EmbeddingModel.from_pretrained(folder, dtype=dtype).encode(TEXTS)
    assert found.dtype is DType.F32
    np.testing.assert_allclose(np.linalg.norm(found.numpy(), axis=1), 1.0, atol=1e-6)
    # Elements are about 0.2; halves keep 8 or 11 bits through two blocks.
    np.testing.assert_allclose(found.numpy(), model.encode(TEXTS).numpy(), atol=0.02 if dtype == "bf16" else 0.003)


def test_the_encoder_by_itself(folder: Path) -> None:
    config = loader.load_config(folder)
    assert isinstance(config, bert.Config)
    encoder = BertEncoder(config, loader.load_weights(folder), True)
    ids, mask = Tensor.new([[2, 5, 6, 3], [2, 7, 3, 0]], dtype="u32"), Tensor.new([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = encoder.encode(ids, mask)
    np.testing.assert_allclose(found.numpy()[1:], encoder(Tensor.new([[2, 7, 3]], dtype="u32")).numpy(), atol=CLOSE)
    zeros = BertEncoder(config, VarBuilder.zeros("f32", Device.Cpu), True)
    assert np.array_equal(zeros.encode(ids, mask).numpy(), np.zeros((2, 32), np.float32))


# --- what the user gets wrong -----------------------------------------------------------------


def test_input_that_is_no_list_of_texts(model: EmbeddingModel) -> None:
    with pytest.raises(EmbeddingError.EmptyInput, match="cannot encode empty text"):
        model.encode([])
    with pytest.raises(ArgumentTypeError, match="encode: got 'hello'; takes a list of texts"):
        model.encode("hello")
    with pytest.raises(ArgumentTypeError, match="encode: got text 1: 3; takes a list of texts"):
        model.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ArgumentTypeError, match="encode: got None; takes a list of texts"):
        model.encode(None)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingError.TokenizationFailed, match=r"U\+D800 at character 1"):
        model.encode(["ab", "a\ud800"])
    with pytest.raises(ArgumentValueError, match="encode: got batch_size 0; takes an integer from 1"):
        model.encode(["a"], batch_size=0)


@pytest.mark.parametrize("name", ["no-such-folder", "./no/folder", "/no/folder", "a/b/c", "~/no-such/folder", ""])
def test_a_model_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmbeddingError.ModelNotFound, match=r"takes a folder with config\.json, a hub id"):
        EmbeddingModel.from_pretrained(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddingError.ModelNotFound, match="file; takes a folder"):
        EmbeddingModel.from_pretrained(tmp_path / "file")


def test_the_hub_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(
        EmbeddingError.ModelNotFound, match=r"intfloat/e5-small-v2.*pip install \"metal-candle\[hub\]\""
    ):
        EmbeddingModel.from_pretrained(EmbeddingModelType.E5SmallV2)


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    def refused(kind: Any, said: str) -> None:
        with pytest.raises(kind, match=said):
            EmbeddingModel.from_pretrained(tmp_path)

    refused(EmbeddingError.ModelNotFound, "config.json not found in")
    tiny_folder.write(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(good[:100])
    refused(EmbeddingError.InvalidConfig, r"failed to load weights: .*model.safetensors")
    weights.unlink()
    refused(EmbeddingError.ModelNotFound, r"No model weights found in .*; takes model.safetensors")
    weights.write_bytes(good)
    config.write_text("{")
    refused(EmbeddingError.InvalidConfig, r"failed to parse config.json")
    config.write_text(json.dumps({"model_type": "roberta"}))
    refused(EmbeddingError.InvalidConfig, r"model_type is 'roberta'; takes bert, mpnet")
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    refused(EmbeddingError.InvalidConfig, r"encoder.layer.2.*do not fit config.json")
    config.write_text(text.replace('"hidden_size": 32', '"hidden_size": 33'))
    refused(EmbeddingError.InvalidConfig, r"failed to parse config.json: hidden_size 33 is not divisible")
    config.write_text(text)
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(EmbeddingError.TokenizerFailed, "tokenizer.json")
    (tmp_path / "tokenizer.json").unlink()
    refused(EmbeddingError.TokenizerFailed, "tokenizer.json")


@pytest.mark.parametrize(
    ("modules", "pooling", "said"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "module Dense is not supported; takes Transformer, Pooling"),
        (["Transformer", "Pooling"], {"pooling_mode_lasttoken": True}, "pooling lasttoken is not supported; takes cls"),
        (["Transformer", "Pooling"], {"pooling_mode": "sum"}, "pooling sum is not supported"),
    ],
)
def test_what_a_folder_asks_for_and_is_not_there(
    modules: list[str], pooling: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tiny_folder.write(tmp_path, modules=modules, pooling=pooling)
    with pytest.raises(EmbeddingError.InvalidConfig, match=said):
        EmbeddingModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("length", [-1, 0, 1])
def test_lengths_without_room_are_refused(length: int, folder: Path) -> None:
    with pytest.raises(EmbeddingError.InvalidConfig, match=f"max_seq_length is {length}; takes a"):
        EmbeddingModel.from_config(EmbeddingConfig(folder, max_seq_length=length))


def test_a_type_whose_files_have_another_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metal_candle.embeddings.model.download_model", lambda model_type, progress: folder)
    with pytest.raises(EmbeddingError.DimensionMismatch, match="expected 768, got 32"):
        EmbeddingModel.from_pretrained(EmbeddingModelType.AllMpnetBaseV2)


def test_types_and_defaults() -> None:
    assert EmbeddingModelType.default() is EmbeddingModelType.E5SmallV2
    assert EmbeddingConfig() == EmbeddingConfig.default()
    assert EmbeddingConfig() == EmbeddingConfig(EmbeddingModelType.E5SmallV2, normalize=True, max_seq_length=512)
    ids = {kind: (kind.model_id(), kind.dimension()) for kind in EmbeddingModelType}
    assert ids == {
        EmbeddingModelType.E5SmallV2: ("intfloat/e5-small-v2", 384),
        EmbeddingModelType.AllMiniLmL6V2: ("sentence-transformers/all-MiniLM-L6-v2", 384),
        EmbeddingModelType.AllMpnetBaseV2: ("sentence-transformers/all-mpnet-base-v2", 768),
    }
    assert loader.known_type("intfloat/e5-small-v2") is EmbeddingModelType.E5SmallV2
    assert loader.known_type("intfloat/e5-large") is None


def test_weights_in_shards(tmp_path: Path, model: EmbeddingModel) -> None:
    weights = tiny_folder.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    sizes = {name: value.nbytes for name, value in weights.items()}
    sharded.save(
        tmp_path,
        sizes,
        lambda names: {name: mx.array(weights[name]) for name in names},
        limit=sum(sizes.values()) // 3,
        metadata={"format": "pt"},
    )
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    found = EmbeddingModel.from_pretrained(tmp_path).encode(TEXTS)
    np.testing.assert_array_equal(found.numpy(), model.encode(TEXTS).numpy())
    shards[1].unlink()
    with pytest.raises(EmbeddingError.ModelNotFound, match=shards[1].name):
        EmbeddingModel.from_pretrained(tmp_path)
