"""Token embeddings. candle: ``candle_nn::embedding``."""

from __future__ import annotations

from ..error import ShapeMismatchError
from ..tensor.arguments import expect_tensor
from ..tensor.eager import Tensor
from .init import Randn
from .module import Module, T
from .var_builder import VarBuilder


class Embedding(Module):
    """Rows of a table for ids: ``(…)`` to ``(…, hidden_size)``; the table is ``(vocabulary, hidden_size)``.

    Raises ``ShapeMismatchError`` for a table of another shape, where candle does so when it is called.
    candle: ``candle_nn::Embedding``.
    """

    def __init__(self, embeddings: Tensor, hidden_size: int) -> None:
        expect_tensor("embedding", embeddings, "embeddings")
        if embeddings.rank != 2 or embeddings.shape[1] != hidden_size:
            got = f"got a table of shape {tuple(embeddings.shape)} and hidden size {hidden_size}"
            raise ShapeMismatchError(f"embedding: {got}; takes a table (vocabulary, hidden_size)")
        self._embeddings, self._hidden_size = embeddings, hidden_size

    def embeddings(self) -> Tensor:
        """The table."""
        return self._embeddings

    def hidden_size(self) -> int:
        """The size of a row."""
        return self._hidden_size

    def forward(self, xs: T) -> T:
        """The rows, for ids of U8, U32, I32 or I64; the dtype's largest value gives zeros, as in candle.

        Raises ``InvalidIndexError`` for another id outside the table, ``UnsupportedDTypeForOpError`` for another dtype.
        """
        table = xs._lift(self._embeddings)
        return table.embedding(xs)  # type: ignore[attr-defined, no-any-return]


def embedding(in_size: int, out_size: int, vb: VarBuilder) -> Embedding:
    """A table from ``vb``'s ``weight``; a new one starts standard normal. candle: ``candle_nn::embedding``."""
    return Embedding(vb.get_with_hints((in_size, out_size), "weight", Randn(0.0, 1.0)), out_size)
