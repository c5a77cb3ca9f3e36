"""What lazy and eager tensors share: properties, values as Python and NumPy objects, recording."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import mlx.core as mx
import numpy as np

from .. import display
from ..device import Device
from ..dtype import DType
from ..error import Error, NotEvaluatedError
from ..graph.evaluate import evaluate
from ..graph.node import GraphNode, TensorId, current_trace, layout_of, leaf, record, topological_order
from ..graph.operation import Operation, to_numpy
from ..layout import Layout
from ..shape import DimLike, Shape, expect_rank, resolve_dim

T = TypeVar("T", bound="TensorBase")


class TensorBase:
    """A tensor as a place in a graph. Subclasses say what happens after an operation was recorded."""

    __slots__ = ()
    _node: GraphNode
    # NumPy's numbers leave `number * tensor` to the tensor.
    __array_ufunc__ = None

    # --- recording ----------------------------------------------------------------------------

    def _wrap(self: T, node: GraphNode) -> T:
        """A tensor of this kind for a node that was just recorded."""
        raise AssertionError("a tensor class defines _wrap")

    def _operand(self, other: TensorBase) -> GraphNode:
        """The node of an operand, if tensors of this kind take it."""
        return other._node

    def _lift(self: T, other: TensorBase) -> T:
        """``other``, a weight say, as a tensor of this kind."""
        raise AssertionError("a tensor class defines _lift")

    @staticmethod
    def _is_number(value: Any) -> bool:
        return isinstance(value, (int, float, np.integer, np.floating, np.bool_))

    def _number(self, value: Any) -> GraphNode:
        """A Python number as an operand: it takes this tensor's dtype. Raises ``Error`` if it does not fit there."""
        if not self._is_number(value):
            raise Error(f"operand: got {type(value).__name__}; takes a tensor or a number")
        node, number = self._node, value.item() if isinstance(value, np.generic) else value
        if node.dtype.is_int():
            info = mx.iinfo(node.dtype.mlx_)
            if not info.min <= number <= info.max or number != int(number):
                takes = f"an integer from {info.min} to {info.max}, or to_dtype first"
                raise Error(f"operand: got {number} beside a tensor of {node.dtype}; takes {takes}")
            number = int(number)
        else:
            try:
                number = float(number)
            except OverflowError:
                raise Error(f"operand: got {number}; takes a number that a float holds") from None
        return leaf(mx.array(number, node.dtype.mlx_), node.device)

    def _record(self: T, operation: Operation, *others: TensorBase) -> T:
        return self._wrap(record(operation, (self._node, *[self._operand(other) for other in others])))

    # --- properties ---------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """The sizes of its dims."""
        return self._node.meta[0]  # type: ignore[return-value]

    @property
    def dtype(self) -> DType:
        """Its element type."""
        return self._node.meta[1]  # type: ignore[return-value]

    @property
    def device(self) -> Device:
        """Where it is computed."""
        return self._node.device

    @property
    def rank(self) -> int:
        """Its number of dims."""
        return len(self.shape)

    def layout(self) -> Layout:
        """Where its elements lie in storage by candle's rules. candle: ``Tensor::layout``."""
        return layout_of(self._node)

    @property
    def stride(self) -> tuple[int, ...]:
        """Its strides in elements, by candle's rules: those of a view are its storage's."""
        return self.layout().stride

    def is_contiguous(self) -> bool:
        """Whether its elements lie row-major by candle's rules. MLX may have copied; no operation here asks for it."""
        return self.layout().is_contiguous()

    def is_fortran_contiguous(self) -> bool:
        """Whether its elements lie column-major by candle's rules."""
        return self.layout().is_fortran_contiguous()

    def strided_index(self) -> Iterator[int]:
        """The place of each element in storage, in row-major order. candle: ``Tensor::strided_index``."""
        return iter(self.layout().places().reshape(-1).tolist())

    @property
    def nelement(self) -> int:
        """Its number of elements."""
        return self.shape.elem_count()

    def elem_count(self) -> int:
        """Its number of elements."""
        return self.shape.elem_count()

    def dims(self) -> list[int]:
        """The sizes as a list."""
        return list(self.shape)

    def dim(self, dim: DimLike) -> int:
        """The size of one dim. Raises ``DimOutOfRangeError``."""
        return self.shape[resolve_dim(dim, self.shape, "dim")]

    def dims0(self) -> tuple[()]:
        """``()`` for a scalar. Raises ``UnexpectedNumberOfDimsError`` otherwise."""
        expect_rank(self.shape, 0, "dims0")
        return ()

    def dims1(self) -> int:
        """The size of a 1-D tensor. Raises ``UnexpectedNumberOfDimsError`` otherwise."""
        expect_rank(self.shape, 1, "dims1")
        return self.shape[0]

    def dims2(self) -> tuple[int, int]:
        """The sizes of a 2-D tensor. Raises ``UnexpectedNumberOfDimsError`` otherwise."""
        expect_rank(self.shape, 2, "dims2")
        return self.shape[0], self.shape[1]

    def dims3(self) -> tuple[int, int, int]:
        """The sizes of a 3-D tensor. Raises ``UnexpectedNumberOfDimsError`` otherwise."""
        expect_rank(self.shape, 3, "dims3")
        return self.shape[0], self.shape[1], self.shape[2]

    def dims4(self) -> tuple[int, int, int, int]:
        """The sizes of a 4-D tensor. Raises ``UnexpectedNumberOfDimsError`` otherwise."""
        expect_rank(self.shape, 4, "dims4")
        return self.shape[0], self.shape[1], self.shape[2], self.shape[3]

    def dims5(self) -> tuple[int, int, int, int, int]:
        """The sizes of a 5-D tensor. Raises ``UnexpectedNumberOfDimsError`` otherwise."""
        expect_rank(self.shape, 5, "dims5")
        return self.shape[0], self.shape[1], self.shape[2], self.shape[3], self.shape[4]

    def normalize_axis(self, axis: int) -> int:
        """``axis``, which may count from the end, from the front. Raises ``DimOutOfRangeError``."""
        return resolve_dim(axis, self.shape, "normalize_axis")

    def id(self) -> TensorId:
        """What gradients are kept by: a variable's is that of its cell, any other's that of its node."""
        variable = self._node.variable
        return TensorId(self._node.id if variable is None else variable.id)

    def sorted_nodes(self) -> list[GraphNode]:
        """The nodes a gradient passes through, this tensor's first. candle: ``Tensor::sorted_nodes``."""
        return [node for node in reversed(topological_order([self._node])) if node.tracked]

    def track_op(self) -> bool:
        """Whether a gradient can pass through here: it is a variable or depends on one."""
        return self._node.tracked

    def is_variable(self) -> bool:
        """Whether it is a variable."""
        return self._node.variable is not None

    def apply(self, m: Any) -> Any:
        """What a module, or a function, gives for this tensor. candle: ``Tensor::apply``."""
        if hasattr(m, "forward"):
            return m.forward(self)
        if not callable(m):
            raise Error(f"apply: got {type(m).__name__}; takes a module or a function")
        return m(self)

    def apply_t(self, m: Any, train: bool) -> Any:
        """As ``apply``, for a module that acts differently while training. candle: ``Tensor::apply_t``."""
        return m.forward_t(self, train) if hasattr(m, "forward_t") else self.apply(m)

    # --- values -------------------------------------------------------------------------------

    def mlx(self) -> mx.array:
        """The value as an MLX array, without a copy; changing that array in place does not change the tensor."""
        current_trace()  # so that a thread that only reads is known to be at work, see evaluate_in_place
        node = self._node
        if node.value is None:
            trace = current_trace()
            if trace is not None:
                raise NotEvaluatedError(
                    f"{_asked()}: a function that {trace.by} is tracing cannot look at values; return them instead, or "
                    "choose by where_cond"
                )
            evaluate([node])
        # MLX changes an array in place by giving the changed one to the handle: this one is the caller's own.
        return copy.copy(cast("mx.array", node.value))

    def numpy(self) -> np.ndarray[Any, Any]:
        """The value as a NumPy array; BF16, which NumPy lacks, as float32."""
        return to_numpy(self.mlx())

    def tolist(self) -> Any:
        """The value as nested lists."""
        return self.mlx().tolist()

    def to_scalar(self) -> Any:
        """The number of a rank-0 tensor. Raises ``UnexpectedNumberOfDimsError`` for any other."""
        expect_rank(self.shape, 0, "to_scalar")
        return self.mlx().item()

    def to_vec0(self) -> Any:
        """The number of a rank-0 tensor."""
        return self.to_scalar()

    def to_vec1(self) -> list[Any]:
        """The list of a 1-D tensor. Raises ``UnexpectedNumberOfDimsError`` for any other."""
        return self._to_vec(1)

    def to_vec2(self) -> list[list[Any]]:
        """The rows of a 2-D tensor. Raises ``UnexpectedNumberOfDimsError`` for any other."""
        return self._to_vec(2)

    def to_vec3(self) -> list[list[list[Any]]]:
        """The nested lists of a 3-D tensor. Raises ``UnexpectedNumberOfDimsError`` for any other."""
        return self._to_vec(3)

    def _to_vec(self, rank: int) -> list[Any]:
        expect_rank(self.shape, rank, f"to_vec{rank}")
        values: list[Any] = self.tolist()
        return values

    def __str__(self) -> str:
        if self._node.value is None:  # traced: printing must not fail for it
            return repr(self)
        return display.format_tensor(self.mlx(), self.dtype, self.device)


def _asked() -> str:
    """The method that somebody outside of the package called and that is on its way to a value: "to_scalar"."""
    frame, name = sys._getframe(1), "eval"
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__ or ""):
        frame, name = frame.f_back, frame.f_code.co_name
    return "Var" if name == "__init__" else name.strip("_")


def nodes_of(tensors: Sequence[TensorBase]) -> list[GraphNode]:
    """The node of each tensor."""
    return [tensor._node for tensor in tensors]
