"""BERT, which MiniLM and E5 are too. candle: ``candle_transformers::models::bert``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..error import ModelError
from ..error.expect import a, expect
from ..nn.embedding import embedding
from ..nn.layer_norm import layer_norm
from ..nn.var_builder import VarBuilder
from .encoder import BlockNames, Encoder, EncoderConfig


@dataclass(kw_only=True)
class Config(EncoderConfig):
    """BERT's ``config.json``; the defaults are those of BERT base. candle: ``bert::Config``."""

    type_vocab_size: int = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    model_type: str = "bert"

    def validate(self) -> None:
        """Raise ``ModelError.InvalidConfig`` unless a network can be built from these numbers."""
        super().validate()
        if self.type_vocab_size < 1:
            raise ModelError.InvalidConfig(reason=f"type_vocab_size is {self.type_vocab_size}; takes more than 0")
        if self.position_embedding_type != "absolute":
            reason = f"position_embedding_type is {self.position_embedding_type!r}; takes 'absolute'"
            raise ModelError.InvalidConfig(reason=reason)


class BertModel(Encoder):
    """Words, positions and token types, summed and normed, and a stack of blocks; no pooler."""

    names: ClassVar = BlockNames(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
    )
    prefix: ClassVar = "bert."

    def __init__(self, config: Config, vb: VarBuilder) -> None:
        expect("BertModel", config, a(Config, "a bert.Config"), "config")
        super().__init__(config, vb)
        inner, hidden = vb.pp("embeddings"), config.hidden_size
        self.words = embedding(config.vocab_size, hidden, inner.pp("word_embeddings"))
        self.positions = embedding(config.max_position_embeddings, hidden, inner.pp("position_embeddings"))
        self.token_types = embedding(config.type_vocab_size, hidden, inner.pp("token_type_embeddings"))
        self.embedding_norm = layer_norm(hidden, config.layer_norm_eps, inner.pp("LayerNorm"))

    @classmethod
    def load(cls, vb: VarBuilder, config: Config) -> BertModel:
        """The model, as candle spells it."""
        return cls(config, vb)

    def embed(self, ids: Any, token_type_ids: Any = None) -> Any:
        """The sum, normed. Without ``token_type_ids`` ``(b, t)`` all are 0."""
        places = ids._lift(self.positions.embeddings()).narrow(0, 0, ids.dim(1))
        if token_type_ids is None:
            types = ids._lift(self.token_types.embeddings()).narrow(0, 0, 1)
        else:
            types = self.token_types(ids._lift(token_type_ids))
        return self.embedding_norm(self.words(ids).broadcast_add(types).broadcast_add(places))
