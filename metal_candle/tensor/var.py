"""``Var``: a tensor whose content may change, and that gradients are taken for."""

from __future__ import annotations

from typing import Any, TypeVar

from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import CannotSetVarError, DTypeMismatchError, Error, ShapeMismatchBinaryOpError
from ..graph.node import GraphNode, Variable
from ..shape import ShapeLike
from .base import TensorBase
from .eager import CellTensor, Tensor

V = TypeVar("V", bound="Var")


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

    @classmethod
    def from_tensor(cls: type[V], tensor: TensorBase) -> V:
        """A variable that starts from a tensor's value; a ``Var`` comes back sharing its cell."""
        if not isinstance(tensor, TensorBase):
            raise Error(f"from_tensor: got {type(tensor).__name__}; takes a tensor, Var.new takes data")
        var = cls.__new__(cls)
        if isinstance(tensor, CellTensor):
            CellTensor.__init__(var, tensor._variable)
        else:
            CellTensor.__init__(var, Variable(tensor.mlx(), tensor.device))
        return var

    @classmethod
    def rand_f64(
        cls: type[V], lo: float, up: float, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike = None
    ) -> V:
        """``rand`` in candle's other order of arguments. candle: ``Var::rand_f64``."""
        return cls.rand(lo, up, shape, device, dtype)

    @classmethod
    def randn_f64(
        cls: type[V], mean: float, std: float, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike = None
    ) -> V:
        """``randn`` in candle's other order of arguments. candle: ``Var::randn_f64``."""
        return cls.randn(mean, std, shape, device, dtype)

    def into_inner(self) -> Tensor:
        """``as_tensor()``, as candle calls it where the variable is given away. candle: ``Var::into_inner``."""
        return self.as_tensor()

    def set(self, src: TensorBase) -> None:
        """Take the values of ``src``, of the same shape and dtype, which layers and views of this variable then see.

        Raises ``ShapeMismatchBinaryOpError``, ``DTypeMismatchError``, and ``CannotSetVarError`` for a view of this
        variable itself: ``copy()`` it first.

        candle: ``Var::set(&self, src: &Tensor) -> Result<()>``
        """
        if not isinstance(src, TensorBase):
            raise CannotSetVarError(f"set: got a {type(src).__name__}; takes a tensor, Tensor(...) makes one")
        if src.shape != self.shape:
            raise ShapeMismatchBinaryOpError("set", self.shape, src.shape, "the variable's shape")
        if src.dtype is not self.dtype:
            raise DTypeMismatchError("set", self.dtype, src.dtype)
        if isinstance(src, Tensor):
            root = src._storage()
            if isinstance(root, CellTensor) and root._variable is self._variable:
                raise CannotSetVarError("set: got a tensor that shares the variable's storage; takes copy() of it")
        self._store(src._node)

    def as_tensor(self) -> Tensor:
        """A tensor that shares the cell and is tracked."""
        return CellTensor(self._variable)

    def as_detached_tensor(self) -> Tensor:
        """A tensor that shares the cell and is not tracked. candle: ``Var::as_detached_tensor``."""
        return self.detach()

    def __repr__(self) -> str:
        return f"Var[{', '.join(map(str, self.shape))}; {self.dtype}]"
