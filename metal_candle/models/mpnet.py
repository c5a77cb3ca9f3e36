"""MPNet: BERT with positions that begin after the padding's, and a bias for the distance of two tokens.

Song et al. 2020, https://arxiv.org/abs/2004.09297; the distances' buckets are T5's, Raffel et al. 2019,
https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..error import ModelError
from ..error.expect import a, expect
from ..nn.embedding import embedding
from ..nn.layer_norm import layer_norm
from ..nn.var_builder import VarBuilder
from ..tensor.eager import Tensor
from .encoder import BlockNames, Encoder, EncoderConfig

FAR = 128
"""From this distance on all tokens share a bucket."""


@dataclass(kw_only=True)
class Config(EncoderConfig):
    """MPNet's ``config.json``; the defaults are those of MPNet base as transformers has them."""

    vocab_size: int = 30527
    pad_token_id: int = 1
    relative_attention_num_buckets: int = 32
    model_type: str = "mpnet"

    def max_tokens(self) -> int:
        """How many tokens there are positions for: those up to the padding's are not used."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def validate(self) -> None:
        """Raise ``ModelError.InvalidConfig`` unless a network can be built from these numbers."""
        super().validate()
        count = self.relative_attention_num_buckets
        if count < 4 or count % 4:
            reason = f"relative_attention_num_buckets is {count}; takes a multiple of 4 above 0"
            raise ModelError.InvalidConfig(reason=reason)
        if self.max_tokens() < 1:
            reason = f"max_position_embeddings is {self.max_position_embeddings}; takes {self.pad_token_id + 2} or more"
            raise ModelError.InvalidConfig(reason=reason)


class MPNetModel(Encoder):
    """Words and positions, summed and normed, and a stack of blocks that share the distances' bias; no pooler."""

    names: ClassVar = BlockNames(
        "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm"
    )
    prefix: ClassVar = "mpnet."

    def __init__(self, config: Config, vb: VarBuilder) -> None:
        expect("MPNetModel", config, a(Config, "an mpnet.Config"), "config")
        super().__init__(config, vb)
        inner, hidden = vb.pp("embeddings"), config.hidden_size
        self._buckets, self._first = config.relative_attention_num_buckets, config.pad_token_id + 1
        self.words = embedding(config.vocab_size, hidden, inner.pp("word_embeddings"))
        self.positions = embedding(config.max_position_embeddings, hidden, inner.pp("position_embeddings"))
        self.embedding_norm = layer_norm(hidden, config.layer_norm_eps, inner.pp("LayerNorm"))
        self.distances = embedding(self._buckets, config.num_attention_heads, vb.pp("encoder.relative_attention_bias"))

    def embed(self, ids: Any, token_type_ids: Any = None) -> Any:
        """The sum, normed. Raises ``ModelError.InvalidConfig`` where token types are given, of which there are none."""
        if token_type_ids is not None:
            raise ModelError.InvalidConfig(reason="MPNet has no token types; leave token_type_ids out")
        places = ids._lift(self.positions.embeddings()).narrow(0, self._first, ids.dim(1))
        return self.embedding_norm(self.words(ids).broadcast_add(places))

    def position_bias(self, ids: Any) -> Any:
        """A row of the table for each pair of tokens, by their distance."""
        t = int(ids.dim(1))
        apart = np.arange(t)[None, :] - np.arange(t)[:, None]
        buckets = Tensor.from_numpy(relative_buckets(apart, self._buckets).reshape(-1), self.device)
        heads = self.distances(ids._lift(buckets)).reshape((t, t, -1))
        return heads.permute((2, 0, 1)).unsqueeze(0)


def relative_buckets(distances: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int32]:
    """The bucket of each distance ``key - query``: half of ``count`` for keys behind the query, each half with a
    bucket for each of the nearest distances and, further off, ever wider ones."""
    half = count // 2
    exact = half // 2
    size = np.abs(distances)
    # In float32 as transformers computes it, or a distance at an edge would fall into the next bucket.
    wide = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(FAR / exact))
    far = np.minimum(exact + (wide * np.float32(half - exact)).astype(np.int64), half - 1)
    found = np.where(size < exact, size, far) + np.where(distances > 0, half, 0)
    return found.astype(np.int32)
