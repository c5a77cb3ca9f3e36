"""Updates whose loss or gradients are no numbers are not made."""

from __future__ import annotations

import math

from ..error import TrainingError


def expect_finite(loss: float, norm: float, step: int) -> None:
    """Raise ``TrainingError.Failed`` for a loss, ``TrainingError.Gradient`` for gradients that are not finite.

    ``norm`` is the global norm of the gradients, ``step`` the number of updates that were made.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    kind, what = TrainingError.Gradient, f"gradient norm is {norm}"
    if not math.isfinite(loss):
        kind, what = TrainingError.Failed, f"loss is {loss}"
    kept = f"at step {step + 1}; the adapter keeps the weights of step {step}"
    raise kind(reason=f"{what} {kept}; try a lower learning rate")
