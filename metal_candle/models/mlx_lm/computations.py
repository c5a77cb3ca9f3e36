"""What records of an mlx-lm model compute: logits, losses at some positions, their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import mlx.core as mx

from ...dtype import DType
from ...error import ShapeMismatchError
from ...graph.operation import Meta, Metas
from ...graph.operations.ids import expect_ids, guard
from ...kernels.cross_entropy import cross_entropy
from ...shape import Shape, expect_rank
from .adapted import Update
from .network import Network


@dataclass(frozen=True)
class Seat:
    """A place where an update acts, as a record keeps it; its factors are inputs of the record."""

    path: str
    scale: float
    dropout: float


@dataclass(frozen=True)
class _Computation:
    """A model with the seats that are taken. Inputs: ids, ``beside`` others, a key if a seat drops, A and B of each."""

    network: Network
    seats: tuple[Seat, ...]
    beside: ClassVar[int] = 0
    name: ClassVar[str]

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        """Two for each number of the model and each position."""
        ids = cast("Meta", inputs[0])
        return 2 * self.network.parameters * math.prod(ids.shape)

    def _check(self, ids: Meta) -> None:
        expect_rank(ids.shape, 2, self.name)
        expect_ids(self.name, ids)

    def _ids(self, ids: mx.array) -> mx.array:
        return guard(self.name, ids, self.network.vocabulary)[0]

    def _updates(self, inputs: Sequence[mx.array]) -> dict[str, Update]:
        rest = list(inputs[1 + self.beside :])
        dropping = [seat.path for seat in self.seats if seat.dropout]
        keys = dict(zip(dropping, mx.random.split(rest.pop(0), len(dropping)))) if dropping else {}
        return {
            seat.path: Update(a, b, seat.scale, seat.dropout, keys.get(seat.path))
            for seat, a, b in zip(self.seats, rest[::2], rest[1::2])
        }


@dataclass(frozen=True)
class Logits(_Computation):
    """Ids ``(b, t)`` to logits ``(b, t, vocabulary)``."""

    dtype: DType
    name: ClassVar[str] = "mlx_lm_logits"

    def infer(self, *inputs: Meta) -> Meta:
        """The logits' shape; raises ``ShapeMismatchError`` and ``UnsupportedDTypeForOpError`` for what are no ids."""
        self._check(inputs[0])
        return Meta(Shape((*inputs[0].shape, self.network.vocabulary)), self.dtype)

    def compute(self, *inputs: mx.array, differentiated: bool) -> mx.array:
        """The logits."""
        logits = self.network.logits(self._ids(inputs[0]), self._updates(inputs), differentiated)
        return logits.astype(self.dtype.mlx_)


@dataclass(frozen=True)
class Losses(_Computation):
    """Ids ``(b, t)``, rows ``(n,)`` of them and targets ``(n,)`` to the cross entropies ``(n,)`` in F32."""

    beside: ClassVar[int] = 2
    name: ClassVar[str] = "mlx_lm_row_losses"

    def infer(self, *inputs: Meta) -> Meta:
        """The losses' shape; raises as ``Logits``, and where rows and targets differ in number."""
        ids, rows, *others = inputs[: 1 + self.beside]
        self._check(ids)
        expect_rank(rows.shape, 1, self.name)
        expect_ids(self.name, rows)
        expect_ids(self.name, others[0])
        for other in others:
            if other.shape != rows.shape:
                got = f"{list(rows.shape)} rows and {list(other.shape)} targets or weights"
                raise ShapeMismatchError(f"{self.name}: got {got}; takes one of each")
        return Meta(rows.shape, DType.F32)

    def compute(self, *inputs: mx.array, differentiated: bool) -> mx.array:
        """The losses."""
        ids, rows, targets = inputs[:3]
        at = guard(self.name, rows, ids.size)[0]
        logits = self.network.row_logits(self._ids(ids), at, self._updates(inputs), differentiated)
        losses: mx.array = cross_entropy(logits, guard(self.name, targets, self.network.vocabulary)[0])
        return losses.astype(mx.float32)


@dataclass(frozen=True)
class WeightedLoss(Losses):
    """As ``Losses``, with weights ``(n,)``: their sum of products, a number."""

    beside: ClassVar[int] = 3
    name: ClassVar[str] = "mlx_lm_weighted_loss"

    def infer(self, *inputs: Meta) -> Meta:
        """A number; raises as ``Losses``."""
        super().infer(*inputs)
        return Meta(Shape(()), DType.F32)

    def compute(self, *inputs: mx.array, differentiated: bool) -> mx.array:
        """The sum."""
        return (super().compute(*inputs, differentiated=differentiated) * inputs[3].astype(mx.float32)).sum()
