"""What is no model, configuration, text or tensor is refused where it is given, in words."""

# mypy: disable-error-code="arg-type, list-item, dict-item"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import Tensor
from metal_candle.embeddings import EmbeddingConfig, EmbeddingModel, loader, pooling
from metal_candle.embeddings.encoder import SentenceEncoder
from metal_candle.error import ArgumentTypeError, ArgumentValueError, EmbeddingError

import pytest
import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    folder = tmp_path_factory.mktemp("embedding") / "tiny"
    tiny_folder.write(folder)
    return EmbeddingModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_seq_length": None}, "max_seq_length is None; takes an integer from 1"),
        ({"max_seq_length": 8.5}, "max_seq_length is 8.5; takes an integer from 1"),
        ({"normalize": "no"}, "normalize is 'no'; takes True or False"),
        ({"model_type": 3}, "model_type is 3; takes a folder with config.json, a hub id"),
    ],
)
def test_configurations_of_another_type(model: EmbeddingModel, fields: dict[str, Any], said: str) -> None:
    config = EmbeddingConfig(**fields)
    for check in (config.validate, lambda: EmbeddingModel(model.encoder, model.tokenizer, config)):
        with pytest.raises(EmbeddingError.InvalidConfig, match=said):
            check()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: EmbeddingModel.from_config("a"), "EmbeddingModel: got config 'a'; takes an EmbeddingConfig"),
        (lambda model: EmbeddingModel(None, model.tokenizer, model.config()), "got encoder None; takes a Sentence"),
        (lambda model: EmbeddingModel(model.encoder, None, model.config()), "got tokenizer None; takes a Tokenizer"),
        (lambda model: EmbeddingModel.from_pretrained("a/b", progress=3), "got progress 3; takes a function or None"),
        (lambda model: loader.download_model(3), "download_model: got 3; takes a folder"),
        (lambda model: loader.load_config(None), "load_config: got None; takes a path"),
        (lambda model: loader.load_weights([3]), "load_weights: got a list; takes a path"),
        (lambda model: SentenceEncoder(None, True), "SentenceEncoder: got model None; takes an Encoder"),
        (lambda model: SentenceEncoder(model.encoder.model, True, "mean"), "got pools 'mean'; takes a list of cls"),
        (lambda model: SentenceEncoder(model.encoder.model, 3), "got 3 for normalize; takes True or False"),
        (lambda model: model.encoder.forward([[1]]), "SentenceEncoder: got ids a list; takes a tensor"),
        (lambda model: pooling.mean_pool(None, None), "mean_pool: got hidden None; takes a tensor"),
        (lambda model: pooling.max_pool(Tensor.ones((1, 2, 3), "f32"), 3), "max_pool: got mask 3; takes a tensor"),
        (lambda model: pooling.normalize([1.0]), "normalize: got a list; takes a tensor"),
    ],
)
def test_arguments_of_another_type(model: EmbeddingModel, call: Callable[[EmbeddingModel], Any], said: str) -> None:
    with pytest.raises(ArgumentTypeError, match=said):
        call(model)


def test_pools_that_are_none(model: EmbeddingModel) -> None:
    for pools in ([], ["median"]):
        with pytest.raises(ArgumentValueError, match="takes some of cls, max, mean"):
            SentenceEncoder(model.encoder.model, True, pools)


def test_a_name_too_long_for_a_file() -> None:
    with pytest.raises(EmbeddingError.ModelNotFound, match="model not found: aaa"):
        EmbeddingModel.from_pretrained("a" * 5000)
