"""``Var``: a tensor whose content may change, and that gradients are taken for."""

from __future__ import annotations

from typing import Any, TypeVar

from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import CannotSetVarError
from ..graph.node import GraphNode, Variable, current_trace
from .base import TensorBase
from .eager import Tensor

V = TypeVar("V", bound="Var")


class CellTensor(Tensor):
    """A tensor that shares a variable's cell: it always has the value that was set last."""

    __slots__ = ("_variable",)

    def __init__(self, variable: Variable) -> None:
        self._variable = variable

    @property
    def _node(self) -> GraphNode:  # type: ignore[override]
        return self._variable.node


class Var(CellTensor):
    """A variable. ``VarMap``, layers and ``as_tensor()`` share its cell and see later ``set``s.

    candle: ``candle_core::Var``.
    """

    __slots__ = ()

    def __init__(self, data: Any, device: DeviceLike = None, dtype: DTypeLike | None = None) -> None:
        if isinstance(data, CellTensor):
            super().__init__(data._variable)
            return
        start = Tensor(data, device, dtype)
        super().__init__(Variable(start.mlx(), start.device))

    @classmethod
    def _from_node(cls: type[V], node: GraphNode) -> V:
        # The constructors zeros, randn … of a Var; results of operations on a Var are plain tensors.
        start = Tensor._from_node(node)
        return cls.from_tensor(start)

    def _wrap(self, node: GraphNode) -> Any:
        return Tensor._from_node(node)

    @classmethod
    def from_tensor(cls: type[V], tensor: TensorBase) -> V:
        """A variable that starts from a tensor's value; a ``Var`` comes back sharing its cell."""
        var = cls.__new__(cls)
        if isinstance(tensor, CellTensor):
            CellTensor.__init__(var, tensor._variable)
        else:
            CellTensor.__init__(var, Variable(tensor.mlx(), tensor.device))
        return var

    def set(self, src: TensorBase) -> None:
        """Take the values of ``src``, of the same shape and dtype. Raises ``CannotSetVarError``."""
        if not isinstance(src, TensorBase):
            raise CannotSetVarError(f"set: got a {type(src).__name__}; takes a tensor, Tensor(...) makes one")
        if src.shape != self.shape or src.dtype is not self.dtype:
            raise CannotSetVarError(
                f"set: variable is {list(self.shape)} {self.dtype}, got {list(src.shape)} {src.dtype}; "
                "takes the same shape and dtype"
            )
        if current_trace() is None:
            self._variable.assign(src.mlx())
        else:
            self._variable.assign_node(src._node)

    def as_tensor(self) -> Tensor:
        """A tensor that shares the cell and is tracked."""
        return CellTensor(self._variable)

    def as_detached_tensor(self) -> Tensor:
        """The value as it is now, not tracked."""
        return self.detach()

    def __repr__(self) -> str:
        return f"Var[{', '.join(map(str, self.shape))}; {self.dtype}]"
