"""Token embeddings. candle: ``candle_nn::embedding``."""

from __future__ import annotations

from ..tensor.eager import Tensor
from .init import Randn
from .module import Module, T
from .var_builder import VarBuilder


class Embedding(Module):
    """Rows of a table for ids: ``(…)`` to ``(…, hidden_size)``; the table is ``(vocabulary, hidden_size)``."""

    def __init__(self, embeddings: Tensor, hidden_size: int) -> None:
        self._embeddings, self._hidden_size = embeddings, hidden_size

    def embeddings(self) -> Tensor:
        """The table."""
        return self._embeddings

    def hidden_size(self) -> int:
        """The size of a row."""
        return self._hidden_size

    def forward(self, xs: T) -> T:
        """The rows. Raises ``InvalidIndexError`` for an id outside the table."""
        table = xs._lift(self._embeddings)
        return table.embedding(xs)  # type: ignore[attr-defined, no-any-return]


def embedding(in_size: int, out_size: int, vb: VarBuilder) -> Embedding:
    """A table from ``vb``'s ``weight``; a new one starts standard normal."""
    return Embedding(vb.get_with_hints((in_size, out_size), "weight", Randn(0.0, 1.0)), out_size)
