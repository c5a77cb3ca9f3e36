"""Dropout as a layer. candle: ``candle_nn::Dropout``."""

from __future__ import annotations

from ..error import ArgumentValueError
from ..graph.operations.counts import number
from . import ops
from .module import ModuleT, T


class Dropout(ModuleT):
    """While training, elements set to 0 with probability ``drop_p``, the others scaled by 1 / (1 - drop_p).

    A mask is drawn at each call, from the generator that ``Device.set_seed`` seeds; the gradient sees it. Raises
    ``ArgumentValueError`` unless 0 <= drop_p < 1, where candle does so at the first call.
    """

    def __init__(self, drop_p: float) -> None:
        self._drop_p = number("dropout", "drop_p", drop_p)
        if not 0 <= self._drop_p < 1:
            raise ArgumentValueError(f"dropout: got drop_p {self._drop_p}; takes 0 <= drop_p < 1")

    def forward(self, xs: T, train: bool | None = None) -> T:
        """``forward_t``; without ``train`` in the mode that ``train()`` and ``eval()`` set."""
        return self.forward_t(xs, self.is_training() if train is None else train)

    def forward_t(self, xs: T, train: bool) -> T:
        """The tensor with elements dropped, or itself where ``train`` is false."""
        return ops.dropout(xs, self._drop_p) if train else xs
