"""``VarMap``: named variables. candle: ``candle_nn::VarMap``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import CannotFindTensorError, UnexpectedShapeError
from ..shape import Shape, ShapeLike
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from ..tensor.var import Var
from .init import Init


class VarMap:
    """The variables of a model by name; ``VarBuilder.from_varmap`` fills it as layers ask for theirs."""

    def __init__(self) -> None:
        self._data: dict[str, Var] = {}

    def all_vars(self) -> list[Var]:
        """Every variable, in the order they were made."""
        return list(self._data.values())

    def data(self) -> Mapping[str, Var]:
        """Name to variable."""
        return self._data

    def get(self, shape: ShapeLike, name: str, init: Init, dtype: DTypeLike, device: DeviceLike) -> Tensor:
        """The variable's tensor; made with ``init`` on first use. Raises ``UnexpectedShapeError``."""
        wanted = Shape.of(shape)
        if name not in self._data:
            self._data[name] = init.var(wanted, dtype, device)
        var = self._data[name]
        if var.shape != wanted:
            raise UnexpectedShapeError(name, wanted, var.shape)
        return var.as_tensor()

    def set_one(self, name: str, value: TensorBase) -> None:
        """Set a variable. Raises ``CannotFindTensorError``, with the nearest names, for an unknown one."""
        if name not in self._data:
            raise CannotFindTensorError(name, difflib.get_close_matches(name, list(self._data), n=3))
        self._data[name].set(value)
