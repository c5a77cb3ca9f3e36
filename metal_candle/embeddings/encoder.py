"""An encoder and what is done with its last hidden states. metal-candle: ``metal_candle::embeddings::BertEncoder``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dtype import DType
from ..error import ArgumentValueError
from ..error.expect import a, expect, listed
from ..models.bert import BertModel, Config
from ..models.encoder import Encoder
from ..nn.module import Module
from ..nn.var_builder import VarBuilder
from ..tensor.arguments import boolean, expect_tensor
from .pooling import POOLS, normalize


class SentenceEncoder(Module):
    """Ids and a mask to an embedding for each row. ``pools`` are names of ``POOLS``, whose results are joined."""

    def __init__(self, model: Encoder, normalize: bool, pools: Sequence[str] = ("mean",)) -> None:
        expect("SentenceEncoder", model, a(Encoder, "an Encoder: a BertModel or an MPNetModel"), "model")
        self.pools = tuple(listed("SentenceEncoder", pools, f"a list of {', '.join(POOLS)}", "pools"))
        if not self.pools or any(name not in POOLS for name in self.pools):
            raise ArgumentValueError(f"SentenceEncoder: got pools {self.pools!r}; takes some of {', '.join(POOLS)}")
        self.model, self.normalizes = model, boolean("SentenceEncoder", "normalize", normalize)

    def dimension(self) -> int:
        """The length of an embedding."""
        return self.model.config.hidden_size * len(self.pools)

    def encode(self, input_ids: Any, attention_mask: Any) -> Any:
        """Embeddings ``(b, dimension)`` in F32 of ids and mask ``(b, t)``; padding is on the right and not seen."""
        hidden = self.model.forward(input_ids, None, attention_mask).to_dtype(DType.F32)
        pooled = [POOLS[name](hidden, attention_mask) for name in self.pools]
        joined = pooled[0] if len(pooled) == 1 else type(hidden).cat(pooled, 1)
        return normalize(joined) if self.normalizes else joined

    def forward(self, xs: Any, attention_mask: Any = None) -> Any:
        """``encode``; without a mask all are tokens."""
        expect_tensor("SentenceEncoder", xs, "ids")
        return self.encode(xs, xs.ones_like() if attention_mask is None else attention_mask)


class BertEncoder(SentenceEncoder):
    """BERT with the mean over its tokens. metal-candle: ``BertEncoder``, which takes the mask for token types."""

    def __init__(self, config: Config, vb: VarBuilder, normalize: bool) -> None:
        super().__init__(BertModel(config, vb), normalize)
