"""Muon, for the matrices of hidden layers."""

from __future__ import annotations

from typing import Any

from ...error import UnexpectedNumberOfDimsError
from ...graph.operations.mlx_update import MuonUpdate
from ...tensor.var import Var
from .optimizer import Optimizer
from .params import ParamsMuon


class Muon(Optimizer[ParamsMuon]):
    """Momentum made orthogonal by Newton and Schulz's iteration: ``Muon(matrices, 0.02)``. Ours.

    Computed by ``mlx.optimizers.Muon``, in F32. It takes variables of two dims or more; biases, norms' weights, and as
    its authors advise embeddings and the last layer, are for ``AdamW``, by the gradients of one ``backward()``:

        muon = nn.Muon([var for var in vars if var.rank >= 2], 0.02)
        adamw = nn.AdamW([var for var in vars if var.rank < 2])
        grads = loss.backward()
        muon.step(grads)
        adamw.step(grads)

    https://kellerjordan.github.io/posts/muon/
    """

    config_type = ParamsMuon
    record_type = MuonUpdate

    def _check(self, var: Var, place: int) -> None:
        if var.rank < 2:
            takes = "2 or more, AdamW the others"
            raise UnexpectedNumberOfDimsError(f"Muon: variable {place}", takes, var.shape)

    def _moments(self, params: ParamsMuon) -> tuple[str, ...]:
        return ("v",)

    def _numbers(self, params: ParamsMuon) -> tuple[Any, ...]:
        return params.momentum, params.weight_decay, params.nesterov, int(params.ns_steps)
