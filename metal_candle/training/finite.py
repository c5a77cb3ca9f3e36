"""Updates whose loss or gradients are no numbers are not made."""

from __future__ import annotations

import math

from ..error import TrainingError


def expect_finite(loss: float, norm: float, step: int) -> None:
    """Raise ``TrainingError.Failed`` for a loss, ``TrainingError.Gradient`` for gradients that are not finite.

    ``norm`` is the global norm of the gradients, ``step`` the number of updates that were made.
    """
    kept = f"at step {step + 1}; the adapter keeps the weights of step {step}; try a lower learning rate"
    if not math.isfinite(loss):
        raise TrainingError.Failed(reason=f"loss is {loss} {kept}")
    if not math.isfinite(norm):
        raise TrainingError.Gradient(reason=f"gradient norm is {norm} {kept}")
