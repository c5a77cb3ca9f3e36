"""What is no path, configuration, tensor or text is refused where it is given, in words."""

# mypy: disable-error-code="arg-type, list-item, dict-item"

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import DType, Tensor
from metal_candle.error import (
    ArgumentTypeError,
    ArgumentValueError,
    InvalidIndexError,
    ModelError,
    ShapeMismatchError,
    UnexpectedNumberOfDimsError,
)
from metal_candle.models import (
    Decoder,
    LoadedModel,
    ModelConfig,
    ModelLoader,
    Qwen,
    Tokenizer,
    bert,
    build,
    load_model,
    load_tokenizer,
    mpnet,
    transformer,
)
from metal_candle.models.load import load_config
from metal_candle.models.qwen import QwenDecoderLayer
from metal_candle.models.save import save_model
from metal_candle.nn import VarBuilder

import numpy as np
import pytest

SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SMALL = ModelConfig(**SIZES)
VB = VarBuilder.zeros(DType.F32)
IDS = Tensor.zeros((1, 3), DType.U32)


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Callable[..., Path]) -> LoadedModel:
    return load_model(tiny_model_dir(num_hidden_layers=1))


def decoder() -> Decoder:
    return Decoder(SMALL, VB)


def encoder() -> bert.BertModel:
    return bert.BertModel(bert.Config(**SIZES, max_position_embeddings=8), VB)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load_model(3), "load_model: got 3; takes a folder with config.json, a .gguf file"),
        (lambda: load_tokenizer(None), "got None; takes a folder with config.json"),
        (lambda: load_config(["a"]), "got a list; takes a folder with config.json"),
        (lambda: load_model("a/b", progress=3), "load_model: got progress 3; takes a function or None"),
        (lambda: build(None, {}, "f32"), "build: got config None; takes a ModelConfig"),
        (lambda: build(SMALL, [3], "f32"), "build: got weights a list; takes a dict of arrays by name"),
        (lambda: ModelConfig.from_json(3), "ModelConfig: got 3; takes the text of a config.json"),
        (lambda: ModelConfig.from_file(None), "ModelConfig: got None; takes a path"),
        (lambda: ModelConfig.from_directory(3), "ModelConfig: got 3; takes a path"),
        (lambda: bert.Config.from_file(3), "Config: got 3; takes a path"),
        (lambda: ModelLoader().load_with_validation("a", [3]), "got expected a list; takes a dict of shapes by name"),
        (lambda: Decoder({}, VB), "Decoder: got config a dict; takes a ModelConfig"),
        (lambda: Decoder(SMALL, {}), "Decoder: got vb a dict; takes a VarBuilder"),
        (lambda: Qwen(None, VB), "Qwen: got config None; takes a ModelConfig"),
        (lambda: QwenDecoderLayer(SMALL, 0, None), "QwenDecoderLayer: got vb None; takes a VarBuilder"),
        (lambda: transformer.MLP(8, 8, None), "MLP: got vb None; takes a VarBuilder"),
        (lambda: bert.BertModel(mpnet.Config(), VB), "BertModel: got config a Config; takes a bert.Config"),
        (lambda: mpnet.MPNetModel(mpnet.Config(), None), "MPNetModel: got vb None; takes a VarBuilder"),
        (lambda: decoder().forward([[1, 2]]), "Decoder: got ids a list; takes a tensor"),
        (lambda: decoder().forward(IDS, caches=[None]), "Decoder: got a cache None; takes a list of caches, one for"),
        (lambda: decoder().apply_adapter("adapter.safetensors"), "got 'adapter.safetensors'; takes an adapter"),
        (lambda: decoder().gradient_checkpointing(3), "gradient_checkpointing: got 3 for on; takes True or False"),
        (lambda: decoder().packed(IDS, None), "packed: got positions None; takes a tensor"),
        (lambda: encoder().forward(None), "BertModel: got ids None; takes a tensor"),
        (lambda: encoder().forward(IDS, None, [[1]]), "BertModel: got attention_mask a list; takes a tensor"),
        (lambda: Tokenizer("a", {}), "Tokenizer: got 'a'; takes a tokenizers.Tokenizer"),
        (lambda: Tokenizer.from_directory(3), "Tokenizer: got 3; takes a path"),
        (lambda: Tokenizer.from_gguf("a.gguf"), "got 'a.gguf'; takes a GGUF's Content"),
    ],
)
def test_arguments_of_another_type(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda it: it.encode(None), "encode: got None; takes a text"),
        (lambda it: it.encode("a", 3), "encode: got 3 for add_special_tokens; takes True or False"),
        (lambda it: it.encode_batch("ab"), "encode_batch: got texts 'ab'; takes a list of texts"),
        (lambda it: it.encode_with_offsets(b"a"), "encode: got b'a'; takes a text"),
        (lambda it: it.decode("ab"), "decode: got ids 'ab'; takes a list of token ids"),
        (lambda it: it.decode([1.5]), "decode: got an id 1.5; takes an integer from 0"),
        (lambda it: it.decode_stream().step(None), "decode: got an id None; takes an integer from 0"),
        (lambda it: it.token_to_id(3), "token_to_id: got 3; takes a text"),
        (lambda it: it.unencodable(["a"]), "unencodable: got a list; takes a text"),
        (lambda it: it.truncate("a"), "truncate: got max_length 'a'; takes an integer from 0"),
        (lambda it: it.apply_chat_template({"role": "user"}), "got messages a dict; takes a list of messages"),
        (lambda it: it.apply_chat_template(["hi"]), "got a message 'hi'; takes a list of messages, each a dict"),
        (lambda it: it.save(3), "Tokenizer.save: got 3; takes a path"),
    ],
)
def test_texts_and_ids_of_another_type(loaded: LoadedModel, call: Callable[[Tokenizer], Any], words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        call(loaded.tokenizer)


def test_ids_that_no_tokenizer_has(loaded: LoadedModel) -> None:
    with pytest.raises(ArgumentValueError, match="decode: got an id -1; takes an integer from 0"):
        loaded.tokenizer.decode([-1])
    with pytest.raises(InvalidIndexError, match="decode: index 18446744073709551616 is out of range"):
        loaded.tokenizer.decode([2**64])
    assert loaded.tokenizer.decode(np.array(loaded.tokenizer.encode("ten"))) == "ten"


def test_shapes_that_would_broadcast_by_accident() -> None:
    with pytest.raises(UnexpectedNumberOfDimsError, match="Decoder ids: got rank 1"):
        decoder().forward(IDS.squeeze(0))
    with pytest.raises(ShapeMismatchError, match=r"got attention_mask \(3,\) for ids \(1, 3\); takes the same shape"):
        encoder().forward(IDS, None, Tensor.ones((3,), DType.U8))
    with pytest.raises(ArgumentValueError, match="Decoder: got 2 caches for 1 blocks"):
        decoder().forward(IDS, caches=decoder().new_caches() * 2)
    with pytest.raises(InvalidIndexError, match="QwenDecoderLayer: index 1 is out of range"):
        QwenDecoderLayer(SMALL, 1, VB)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": "16"}, "vocab_size is '16'; takes int"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None; takes int"),
        ({"num_attention_heads": True}, "num_attention_heads is True; takes int"),
        ({"hidden_size": float("nan")}, "hidden_size is nan; takes int"),
        ({"rope_theta": [1.0]}, "rope_theta is .1.0.; takes float"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; takes dict"),
        ({"architectures": [3]}, "architectures is 3; takes str"),
    ],
)
def test_fields_of_another_type(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError.InvalidConfig, match=words):
        ModelConfig(**{**SIZES, **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": "8"}, "hidden_size is '8'; takes int"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5; takes int"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None; takes float"),
        ({"type_vocab_size": None}, "type_vocab_size is None; takes int"),
    ],
)
def test_an_encoders_fields_of_another_type(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError.InvalidConfig, match=words):
        bert.Config(**fields)


def test_numbers_of_numpy_are_numbers() -> None:
    config = ModelConfig(**{**SIZES, "vocab_size": np.int64(16), "rope_theta": 10000, "hidden_size": 8.0})
    assert config == SMALL
    assert json.loads(config.to_json())["vocab_size"] == 16
    assert bert.Config(hidden_size=np.int32(8)) == bert.Config(hidden_size=8)


def test_layers_of_an_unknown_type_are_refused() -> None:
    config = ModelConfig(**SIZES, model_type="qwen2", layer_types=["linear_attention"])
    with pytest.raises(ModelError.InvalidConfig, match="layer_types has 'linear_attention'; takes full_attention, sl"):
        config.validate()


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "a\ud800b", "a\nb", "~nobody-of-this-name/a"])
def test_names_that_no_file_has(name: str) -> None:
    for call in (load_model, ModelConfig.from_directory, Tokenizer.from_directory):
        with pytest.raises(ModelError.FileNotFound, match="model file not found") as caught:
            call(name)
        assert str(caught.value).isprintable()


def test_what_is_saved(loaded: LoadedModel, tmp_path: Path) -> None:
    def save(**changed: Any) -> None:
        save_model(**{"directory": tmp_path / "a", "model": loaded.model, "tokenizer": loaded.tokenizer, **changed})

    for changed, words in (
        ({"directory": None}, "save_model: got None; takes a path"),
        ({"model": loaded}, "save_model: got model a LoadedModel; takes a Decoder"),
        ({"tokenizer": None}, "save_model: got tokenizer None; takes a Tokenizer"),
        ({"overrides": [3]}, "got overrides a list; takes a dict of weights by name"),
        ({"overrides": {"model.norm.weight": 3}}, "got override 'model.norm.weight': 3; takes a tensor"),
        ({"overwrite": "no"}, "save_model: got 'no' for overwrite; takes True or False"),
        ({"shard_bytes": None}, "save_model: got shard_bytes None; takes an integer from 1"),
    ):
        with pytest.raises(ArgumentTypeError, match=words):
            save(**changed)
    with pytest.raises(ArgumentValueError, match="got shard_bytes 0; takes an integer from 1"):
        save(shard_bytes=0)
    assert not any(tmp_path.iterdir())
