"""``Tensor``: the eager tensor of v1 and of candle; every method records and is evaluated at once."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from .. import display
from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import ArgumentTypeError, Error
from ..error.text import described
from ..graph.evaluate import evaluate, evaluate_in_place, evaluate_one
from ..graph.node import GraphNode, Variable, current_trace, record
from ..graph.node_data import NodeData
from ..graph.operation import Meta, Operation
from ..graph.operations.storage import AsStrided, StridedUpdate
from ..graph.operations.structure import Detach
from ..layout import Layout
from ..shape import Shape
from .base import TensorBase
from .construct import Constructors, as_array
from .grad_store import GradStore, backward
from .inplace import InPlaceMethods
from .python import Packed, pack, present, unpack

E = TypeVar("E", bound="Tensor")
K = TypeVar("K", bound="CellTensor")
_detach = Detach()
_evaluate: Callable[[GraphNode], None] = evaluate_one
# What a view has read when it has to read anew.
_NOTHING = GraphNode(Operation.Input, (), Meta(Shape(()), DType.F32), Device.Cpu)


_contiguous = functools.lru_cache(1024)(Layout.contiguous)


@functools.lru_cache(1024)
def _relayout(operation: Operation, layout: Layout) -> Layout | None:
    """``operation.relayout``; a loop takes the same views of the same layouts again and again."""
    return operation.relayout(layout)


def observe(observer: Callable[[GraphNode], None] | None) -> None:
    """Call ``observer`` with each node of an eager operation before it is evaluated; ``None`` ends that.

    What evaluates is exchanged, so that nobody pays who observes nothing.
    """
    global _evaluate

    def observed(node: GraphNode) -> None:
        if observer is not None and node.value is None:
            observer(node)
        evaluate_one(node)

    _evaluate = evaluate_one if observer is None else observed


class Tensor(InPlaceMethods, Constructors):
    """A tensor with its value. A method returns when that is computed, or if it is small, when that has begun.

    It remembers its operation only where a variable is among its ancestors, as candle does. Inside a
    function that ``compile`` traces, operations are recorded and evaluated with the whole function.
    """

    __slots__ = ("__weakref__", "_node")

    def __init__(self, data: Any, device: DeviceLike = None, dtype: DTypeLike | None = None) -> None:
        self._node = type(self)._from_array(as_array(data, dtype), device)._node

    @classmethod
    def _from_node(cls: type[E], node: GraphNode) -> E:
        if node.value is None and current_trace() is None:
            _evaluate(node)
        tensor: E = Tensor.__new__(Tensor)  # type: ignore[assignment]
        tensor._node = node
        return tensor

    def _wrap(self: E, node: GraphNode) -> E:
        if node.operation.is_view:
            return self._view(node)
        if node.value is None and current_trace() is None:
            _evaluate(node)
        tensor: E = Tensor.__new__(Tensor)  # type: ignore[assignment]
        tensor._node = node
        return tensor

    def _view(self: E, node: GraphNode) -> E:
        """The result of an operation that, as in candle, shares this tensor's storage if its layout allows.

        A detached result does not: sharing would keep the graph that it is detached from.
        """
        if isinstance(node.operation, Detach) and self._node.tracked and self._storage()._node.variable is None:
            return self._from_node(node)
        layout = _relayout(node.operation, self.layout())
        node.layout = layout or Layout.contiguous(node.shape)
        if layout is None:
            return self._from_node(node)
        if node.value is None and current_trace() is None:
            _evaluate(node)
        return ViewTensor(self._storage(), node, layout)  # type: ignore[return-value]

    def layout(self) -> Layout:
        """Where its elements lie in the storage it shares with its views. candle: ``Tensor::layout``."""
        return _contiguous(self._node.shape)

    def _storage(self) -> Tensor:
        """The tensor whose content this one's is a part of: itself, unless it is a view."""
        return self

    def _store(self, node: GraphNode) -> None:
        """Take a recorded content, which this tensor's views see."""
        trace = current_trace()
        if trace is None:
            evaluate_in_place(node, self._node)
        elif not self._node.inputs:
            raise Error(
                f"in place: a function that {trace.by} is tracing changes a tensor from outside of it; "
                "takes a Var there"
            )
        self._node = node

    def _operand(self, other: TensorBase) -> GraphNode:
        if not isinstance(other, Tensor):
            if not isinstance(other, TensorBase):
                raise ArgumentTypeError(f"operand: got {described(other)}; takes a tensor")
            raise Error(
                f"operand: got a {type(other).__name__} beside an eager tensor; "
                "lift the eager one with LazyTensor.from_tensor or evaluate the lazy one with .eval()"
            )
        return other._node

    def _lift(self, other: TensorBase) -> Tensor:
        self._operand(other)
        return other  # type: ignore[return-value]

    def backward(self) -> GradStore:
        """Gradients of every variable this depends on; of a tensor with several elements, of its sum."""
        return backward(self, Tensor._from_node)

    def __repr__(self) -> str:
        if self._node.value is None:
            return f"Tensor[{list(self.shape)}; {self.dtype}, traced]"
        return display.debug(self.mlx(), self.dtype, self.device)


class CellTensor(Tensor):
    """A tensor that shares a variable's cell: it always has the value that was set last."""

    __slots__ = ("_variable",)

    def __init__(self, variable: Variable) -> None:
        self._variable = variable

    @property
    def _node(self) -> GraphNode:  # type: ignore[override]
        return self._variable.node

    def _store(self, node: GraphNode) -> None:
        if current_trace() is None:
            evaluate_in_place(node, self._node)
            self._variable.assign(node.value)  # type: ignore[arg-type]
        else:
            self._variable.assign_node(node)

    def __deepcopy__(self: K, memo: dict[int, Any]) -> K:
        """A tensor of the copied cell: what shared a cell shares the copy."""
        cell = memo.get(id(self._variable))
        if cell is None:
            cell = Variable(mx.array(self.mlx()), self.device, self._variable.differentiable)
            memo[id(self._variable)] = cell
        return _of_cell(type(self), cell)

    def __reduce__(self) -> Any:
        return _of_cell, (type(self), self._variable)


def _of_cell(kind: type[K], cell: Variable) -> K:
    tensor = kind.__new__(kind)
    CellTensor.__init__(tensor, cell)
    return tensor


def _pickled_cell(cell: Variable) -> Any:
    node, where = cell.node, cell.node.device
    if node.value is None:
        evaluate([node])
    return _cell, (pack(node.value), (where.kind.value, where.index), cell.differentiable)  # type: ignore[arg-type]


def _cell(packed: Packed, device: tuple[str, int], differentiable: bool) -> Variable:
    return Variable(unpack(packed), present(device), differentiable)


# Through pickle's own memory of objects, tensors that shared a cell share one again.
copyreg.pickle(Variable, _pickled_cell)


class ViewTensor(Tensor):
    """A part of another tensor's storage, as candle's ``narrow``, ``t``, ``detach`` … give it.

    MLX's arrays are values. What was computed stands until the storage is written to; then the part is read anew,
    so that a write through any tensor of a storage is seen by all of them.
    """

    __slots__ = ("_detached", "_layout", "_own", "_root", "_seen")

    def __init__(self, root: Tensor, node: GraphNode, layout: Layout) -> None:
        self._root, self._seen, self._own, self._layout = root, root._node, node, layout
        self._detached = not node.tracked

    @property
    def _node(self) -> GraphNode:  # type: ignore[override]
        storage = self._root._node
        if storage is self._seen:
            trace = current_trace()
            if trace is None or storage.variable is None or self._own.value is None:
                return self._own
            # A compiled function reads variables anew at each call, through views from outside of it too.
            return self._read(storage)
        own = self._read(storage)
        if current_trace() is None:
            evaluate_one(own)
        self._own, self._seen = own, storage
        return own

    def _read(self, storage: GraphNode) -> GraphNode:
        node = record(AsStrided(self._layout), (storage,))
        return record(_detach, (node,)) if self._detached and node.tracked else node

    def layout(self) -> Layout:
        return self._layout

    def _storage(self) -> Tensor:
        return self._root

    def _store(self, node: GraphNode) -> None:
        if self._layout.overlaps():
            raise Error(
                f"in place: the tensor is a view of shape {list(self.shape)} that repeats elements; takes copy() first"
            )
        update = record(StridedUpdate(self._layout), (self._root._node, node))
        # What was read of the storage is stale in a moment, and would keep MLX from writing into it.
        self._own = self._seen = _NOTHING
        self._root._store(update)


NodeData.tensor_of = staticmethod(Tensor._from_node)
