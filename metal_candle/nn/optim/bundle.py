"""Variables that one record updates, with their moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...device import Device
from ...dtype import DType
from ...graph.node import GraphNode, Variable
from ...graph.operations.update import Update
from ...tensor.eager import CellTensor, Tensor
from ...tensor.var import Var

SIZE = 2**17
"""Elements of variables that are updated as one array: it stays in the cache."""


class Bundle:
    """Variables of one parameter group, updated as one array, with their moments, each flat.

    ``places`` are the variables' numbers in the order the optimizer was given them, ``size`` counts their elements.
    """

    def __init__(self, group: int, dtype: DType, device: Device, moments: Sequence[str]) -> None:
        self.group, self.dtype = group, dtype
        self.vars: list[Var] = []
        self.places: list[int] = []
        self.size = 0
        self.moments = {name: cell(Tensor.zeros((0,), dtype, device)) for name in moments}
        self._known: tuple[tuple[object, ...], Update] | None = None

    def add(self, vars: Sequence[tuple[int, Var]]) -> None:
        """Take variables, with their numbers, in; their moments begin at zero."""
        self.places += [place for place, _ in vars]
        self.vars += [var for _, var in vars]
        count = sum(var.elem_count() for _, var in vars)
        self.size += count
        for name, flat in self.moments.items():
            grown = Tensor.cat([flat.as_tensor(), Tensor.zeros((count,), flat.dtype, flat.device)], 0)
            self.moments[name] = cell(grown)

    def cells(self) -> list[CellTensor]:
        """What a step sets: its variables, then the moments."""
        return [*self.vars, *self.moments.values()]

    def update(self, present: tuple[bool, ...], scaled: bool, make: type[Update], numbers: Sequence[Any]) -> Update:
        """The record for these gradients: the same object as long as they are the same, whose hash is known."""
        key = (present, scaled, make, *numbers)
        if self._known is None or self._known[0] != key:
            ratio, *own = numbers
            self._known = key, make(present, ratio, scaled, *own)
        return self._known[1]

    def inputs(self, gradients: Sequence[GraphNode]) -> list[GraphNode]:
        """The record's inputs before the scalars."""
        own = [var._node for var in self.vars]
        return [*own, *gradients, *(flat._node for flat in self.moments.values())]

    def state(self) -> dict[str, mx.array]:
        """Each variable's moments by name, "3.m" say, in the variable's shape; not evaluated."""
        named: dict[str, mx.array] = {}
        wholes = {name: flat.mlx() for name, flat in self.moments.items()}
        start = 0
        for var, place in zip(self.vars, self.places):
            end = start + var.elem_count()
            for name, whole in wholes.items():
                named[f"{place}.{name}"] = whole[start:end].reshape(var.shape)
            start = end
        return named


def distribute(vars: Sequence[tuple[int, Var]], group: int, moments: Sequence[str], bundles: list[Bundle]) -> None:
    """Put variables, with their numbers, into ``bundles``: the last one of their kind if it has room, or new ones."""
    for dtype in (DType.F32, DType.F64):
        mine = [(place, var) for place, var in vars if (var.dtype is DType.F64) == (dtype is DType.F64)]
        bundle = next((each for each in reversed(bundles) if (each.group, each.dtype) == (group, dtype)), None)
        size = bundle.size if bundle else 0
        waiting: list[tuple[int, Var]] = []
        for place, var in mine:
            if bundle is None or (size and size + var.elem_count() > SIZE):
                if bundle is not None:
                    bundle.add(waiting)
                bundle, waiting, size = Bundle(group, dtype, var.device, moments), [], 0
                bundles.append(bundle)
            waiting.append((place, var))
            size += var.elem_count()
        if bundle is not None and waiting:
            bundle.add(waiting)


def cell(start: Tensor) -> Var:
    """A variable that no gradient is taken for."""
    var = Var.__new__(Var)
    CellTensor.__init__(var, Variable(start.mlx(), start.device, differentiable=False))
    return var
