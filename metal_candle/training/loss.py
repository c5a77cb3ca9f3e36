"""The loss of a batch, computed only where there is something to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import DeviceLike
from ..models.projection import AdaptableModel
from ..tensor.eager import Tensor
from .data.batching import Batch

# Rows are padded to a multiple, so that the number of shapes a compiled step sees stays small.
ROWS = 32


@dataclass(frozen=True)
class Targets:
    """The trained positions of a batch: where they are, what is to be predicted there, how much it counts.

    ``ids`` ``(b, t)``; ``rows``, ``targets`` and ``weights`` ``(n,)``, ``rows`` counting through ``b · t``.
    Padding rows have weight 0.
    """

    ids: Tensor
    rows: Tensor
    targets: Tensor
    weights: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, in the order of the fields."""
        return self.ids, self.rows, self.targets, self.weights


def targets_of(batch: Batch, total: int, device: DeviceLike = None) -> Targets:
    """The batch's targets, each weighing ``1 / total``, so that the losses sum to a mean over ``total``."""
    rows = np.flatnonzero(batch.mask)
    count = -(-max(len(rows), 1) // ROWS) * ROWS
    padded, targets, weights = np.zeros(count, np.int32), np.zeros(count, np.int32), np.zeros(count, np.float32)
    padded[: len(rows)] = rows
    targets[: len(rows)] = batch.targets.reshape(-1)[rows]
    weights[: len(rows)] = 1.0 / total
    return Targets(*(Tensor.from_numpy(array, device) for array in (batch.inputs, padded, targets, weights)))


def batch_loss(model: AdaptableModel, ids: Any, rows: Any, targets: Any, weights: Any) -> Any:
    """The weighted sum of the rows' losses: a scalar in F32."""
    return model.row_losses(ids, rows, targets).mul(weights).sum_all()
