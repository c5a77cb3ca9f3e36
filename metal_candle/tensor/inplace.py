"""Methods that change a tensor's content, on the eager tensor only; views of its storage see it."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import mlx.core as mx

from ..error import DTypeMismatchError, Error, ShapeMismatchError
from ..graph.node import GraphNode, leaf, record
from ..graph.operations.custom import Custom
from ..graph.operations.part import SliceAssign
from ..graph.operations.scatter import Scatter, ScatterAdd
from ..shape import DimLike
from .base import TensorBase
from .written import WrittenMethods

P = TypeVar("P", bound="InPlaceMethods")
# A write reads, computes and stores; candle locks the storage meanwhile.
_writing = threading.RLock()


class InPlaceMethods(WrittenMethods):
    """candle's in-place methods. What is written is recorded, so that gradients stay right where one is taken."""

    __slots__ = ()

    def _store(self, node: GraphNode) -> None:
        """Take a content that was recorded, and perhaps not computed yet."""
        raise AssertionError("a tensor class defines _store")

    def _storage(self) -> TensorBase:
        """The tensor whose content this one's is a part of."""
        raise AssertionError("a tensor class defines _storage")

    def _others(self, op: str, *others: TensorBase) -> tuple[tuple[GraphNode, ...], list[Any]]:
        """The nodes and metas of this tensor and other operands, which must have storage of their own, as in candle."""
        for other in others:
            if not isinstance(other, TensorBase):
                raise Error(f"{op}: got {type(other).__name__} for an operand; takes a tensor")
            if isinstance(other, InPlaceMethods) and other._storage() is self._storage():
                raise Error(f"{op}: got a source that shares the tensor's storage; takes copy() of it")
        nodes = (self._node, *[self._operand(other) for other in others])
        return nodes, [node.meta for node in nodes]

    def const_set(self, value: Any) -> None:
        """Every element becomes ``value``, a number or a scalar tensor of the same dtype.

        candle: ``Tensor::const_set(&self, value: Scalar) -> Result<()>``
        """
        if isinstance(value, TensorBase):
            if value.rank or value.dtype is not self.dtype:
                got = f"shape {list(value.shape)}, {value.dtype}"
                raise Error(f"const_set: got {got}; takes a number or a scalar of {self.dtype}")
            number: mx.array = value.mlx()
        else:
            number = self._number(value).value  # type: ignore[assignment]
        with _writing:
            self._store(leaf(mx.broadcast_to(number, self.shape), self.device))

    def zero_set(self) -> None:
        """Every element becomes 0. candle: ``Tensor::zero_set(&self) -> Result<()>``"""
        self.const_set(0)

    def one_set(self) -> None:
        """Every element becomes 1. candle: ``Tensor::one_set(&self) -> Result<()>``"""
        self.const_set(1)

    def slice_set(self, src: TensorBase, dim: DimLike, offset: int) -> None:
        """``src`` is written along ``dim`` from ``offset`` on.

        candle: ``Tensor::slice_set<D: Dim>(&self, src: &Self, dim: D, offset: usize) -> Result<()>``
        """
        with _writing:
            nodes, metas = self._others("slice_set", src)
            self._store(record(SliceAssign.bind_as("slice_set", metas[0], metas[1], dim, offset), nodes))

    def scatter_set(self, indexes: TensorBase, source: TensorBase, dim: DimLike) -> None:
        """``source`` is written where ``indexes`` say along ``dim``; see ``scatter``.

        candle: ``Tensor::scatter_set<D: Dim>(&self, indexes: &Self, source: &Self, dim: D) -> Result<()>``
        """
        with _writing:
            nodes, metas = self._others("scatter_set", indexes, source)
            self._store(record(Scatter.bind(metas[0], metas[1], metas[2], dim), nodes))

    def scatter_add_set(self, indexes: TensorBase, source: TensorBase, dim: DimLike) -> None:
        """``source`` is added where ``indexes`` say along ``dim``; see ``scatter_add``.

        candle: ``Tensor::scatter_add_set<D: Dim>(&self, indexes: &Self, source: &Self, dim: D) -> Result<()>``
        """
        with _writing:
            nodes, metas = self._others("scatter_add_set", indexes, source)
            self._store(record(ScatterAdd.bind(metas[0], metas[1], metas[2], dim), nodes))

    def inplace_op1(self, c: Any) -> None:
        """The content becomes what the user's operation gives of it, of the same shape and dtype.

        candle: ``Tensor::inplace_op1<C: InplaceOp1>(&self, c: &C) -> Result<()>``
        """
        self._inplace(c)

    def inplace_op2(self, rhs: TensorBase, c: Any) -> None:
        """As ``inplace_op1``, of this tensor and another.

        candle: ``Tensor::inplace_op2<C: InplaceOp2>(&self, rhs: &Self, c: &C) -> Result<()>``
        """
        self._inplace(c, rhs)

    def inplace_op3(self, t2: TensorBase, t3: TensorBase, c: Any) -> None:
        """As ``inplace_op1``, of this tensor and two others.

        candle: ``Tensor::inplace_op3<C: InplaceOp3>(&self, t2: &Self, t3: &Self, c: &C) -> Result<()>``
        """
        self._inplace(c, t2, t3)

    def _inplace(self, c: Any, *others: TensorBase) -> None:
        with _writing:
            self._store(self._given(c, others))

    def _given(self, c: Any, others: tuple[TensorBase, ...]) -> GraphNode:
        """What the user's operation gives, which has to be like this tensor."""
        operation = Custom(c)
        node = record(operation, (self._node, *[self._operand(other) for other in others]))
        if node.dtype is not self.dtype:
            raise DTypeMismatchError(operation.name(), self.dtype, node.dtype)
        if node.shape != self.shape:
            raise ShapeMismatchError(
                f"{operation.name()}: in place, it gave shape {list(node.shape)}; takes {list(self.shape)}"
            )
        return node

    def __setitem__(self, at: Any, value: Any) -> None:
        """Write a tensor or a number into the part that ints and slices name; it is broadcast to the part's shape."""
        with _writing:
            part = self.i(at)
            if part._storage() is not self._storage():
                raise Error("setitem: got an index that copies; takes ints, slices, `...` and None, or scatter_set")
            if isinstance(value, TensorBase):
                part._store(self._lift(value).broadcast_as(part.shape)._node)
            else:
                part.const_set(value)
