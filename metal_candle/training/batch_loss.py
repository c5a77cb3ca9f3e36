"""The loss of a batch, computed only where there is something to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import DeviceLike
from ..error import TrainingError
from ..models.adaptable import AdaptableModel, PackableModel, RecomputableModel, WeighingModel
from ..tensor.eager import Tensor
from .data.batching import Batch
from .data.packing import blocks_of
from .data.shapes import rounded_rows

# Rows are padded to a multiple, so that the number of shapes a compiled step sees stays small.
ROWS = 32


@dataclass(frozen=True)
class Targets:
    """The trained positions of a batch: where they are, what is to be predicted there, how much it counts.

    ``ids`` ``(b, t)``; ``rows``, ``targets`` and ``weights`` ``(n,)``, ``rows`` counting through ``b · t``.
    Padding rows have weight 0. ``segments`` and ``positions`` are there where rows are packed: ``(b, t)``, or
    ``(b, n, t / n)`` where attention goes by n blocks, which ``blocks_of`` tells.
    """

    ids: Tensor
    rows: Tensor
    targets: Tensor
    weights: Tensor
    segments: Tensor | None = None
    positions: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there, in the order of the fields."""
        held = (self.ids, self.rows, self.targets, self.weights, self.segments, self.positions)
        return tuple(tensor for tensor in held if tensor is not None)


def targets_of(batch: Batch, total: int, device: DeviceLike = None) -> Targets:
    """The batch's targets, each weighing ``1 / total``, so that the losses sum to a mean over ``total``."""
    rows = np.flatnonzero(batch.mask)
    count = rounded_rows(len(rows), batch.inputs.size, ROWS)
    padded, targets, weights = np.zeros(count, np.int32), np.zeros(count, np.int32), np.zeros(count, np.float32)
    padded[: len(rows)] = rows
    targets[: len(rows)] = batch.targets.reshape(-1)[rows]
    weights[: len(rows)] = 1.0 / total
    arrays = [batch.inputs, padded, targets, weights]
    if batch.segments is not None and batch.positions is not None:
        blocks = blocks_of(batch.positions)
        shape = batch.inputs.shape if blocks == 1 else (len(batch.inputs), blocks, -1)
        arrays += [batch.segments.reshape(shape), batch.positions.reshape(shape)]
    return Targets(*(Tensor.from_numpy(array, device) for array in arrays))


def batch_loss(
    model: AdaptableModel, ids: Any, rows: Any, targets: Any, weights: Any, segments: Any = None, positions: Any = None
) -> Any:
    """The weighted sum of the rows' losses: a scalar in F32. Raises ``TrainingError.InvalidConfig`` for packed rows
    and a model that cannot be told which token belongs to which."""
    if segments is None and isinstance(model, WeighingModel):
        return model.weighted_loss(ids, rows, targets, weights)
    if segments is None:
        losses = model.row_losses(ids, rows, targets)
    else:
        packable = check_packable(model)
        losses = packable.row_losses(ids, rows, targets, packable.packed(segments, positions))
    return losses.mul(weights).sum_all()


def check_packable(model: AdaptableModel) -> PackableModel:
    """The model, if rows can be packed for it; else raises ``TrainingError.InvalidConfig``."""
    if isinstance(model, PackableModel):
        return model
    raise TrainingError.InvalidConfig(
        reason=f"packing: {type(model).__name__} cannot be told which tokens belong together; "
        "takes a model that metal_candle.models loads, or leave packing off"
    )


def check_recomputable(model: AdaptableModel) -> RecomputableModel:
    """The model, if its gradient can compute blocks again; else raises ``TrainingError.InvalidConfig``."""
    if isinstance(model, RecomputableModel):
        return model
    raise TrainingError.InvalidConfig(
        reason=f"gradient_checkpointing: {type(model).__name__} has no blocks that can be computed again; "
        "takes a model that metal_candle.models loads, or leave it off"
    )
