"""Tensors that arrive in pieces along a time axis, and modules that take them; candle's ``candle_core::streaming``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any

from .error import Error
from .shape import D, DimLike, Shape
from .tensor.construct import Constructors


class StreamTensor:
    """A piece of a stream: a tensor, lazy or eager, or nothing yet.

    ``StreamTensor(x)`` holds ``x``, ``StreamTensor()`` nothing. Raises ``Error`` for what is no tensor.

    candle: ``candle_core::streaming::StreamTensor``
    """

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Constructors | None = None) -> None:
        if tensor is not None and not isinstance(tensor, Constructors):
            raise Error(f"StreamTensor: got {type(tensor).__name__}; takes a tensor or None")
        self._tensor: Any = tensor

    @staticmethod
    def empty() -> StreamTensor:
        """Nothing yet."""
        return StreamTensor()

    @staticmethod
    def from_tensor(tensor: Constructors) -> StreamTensor:
        """A piece that is there. Raises ``Error`` for what is no tensor."""
        if tensor is None:
            raise Error("StreamTensor.from_tensor: got None; takes a tensor")
        return StreamTensor(tensor)

    def as_option(self) -> Any:
        """The tensor, or ``None``."""
        return self._tensor

    def shape(self) -> Shape | None:
        """The tensor's shape, ``None`` where there is nothing."""
        return None if self._tensor is None else self._tensor.shape

    def seq_len(self, dim: DimLike) -> int:
        """The size of the time axis, 0 where there is nothing. Raises ``DimOutOfRangeError``."""
        return 0 if self._tensor is None else self._tensor.dim(dim)

    def reset(self) -> None:
        """Forget the tensor."""
        self._tensor = None

    def cat2(self, rhs: StreamTensor, dim: DimLike) -> StreamTensor:
        """This piece and then ``rhs``, joined along ``dim``. Raises as ``Tensor.cat``."""
        if self._tensor is None or rhs._tensor is None:
            return StreamTensor(rhs._tensor if self._tensor is None else self._tensor)
        return StreamTensor(self._tensor.cat([self._tensor, rhs._tensor], dim))

    def narrow(self, dim: DimLike, offset: int, length: int) -> StreamTensor:
        """At most ``length`` steps from ``offset`` on; nothing where the piece ends before.

        Raises ``DimOutOfRangeError``, ``NarrowInvalidArgsError`` for negative numbers.
        """
        if self._tensor is None:
            return StreamTensor()
        size = self._tensor.dim(dim)
        if size <= offset:
            return StreamTensor()
        return StreamTensor(self._tensor.narrow(dim, offset, min(length, size - offset)))

    def split(self, dim: DimLike, lhs_len: int) -> tuple[StreamTensor, StreamTensor]:
        """The first ``lhs_len`` steps, or as many as there are, and the rest; no piece of a pair has 0 steps.

        Raises ``DimOutOfRangeError``, ``NarrowInvalidArgsError`` for a negative number.
        """
        if self._tensor is None:
            return StreamTensor(), StreamTensor()
        size = self._tensor.dim(dim)
        first = min(size, lhs_len)
        if first == 0:
            return StreamTensor(), StreamTensor(self._tensor)
        rest = StreamTensor() if first == size else StreamTensor(self._tensor.narrow(dim, first, size - first))
        return StreamTensor(self._tensor.narrow(dim, 0, first)), rest

    def apply(self, m: Any) -> StreamTensor:
        """What a module or a function gives for the tensor; nothing for nothing."""
        return StreamTensor() if self._tensor is None else StreamTensor(self._tensor.apply(m))

    def __repr__(self) -> str:
        return f"StreamTensor({'empty' if self._tensor is None else list(self._tensor.shape)})"


class StreamingModule(ABC):
    """A module that takes a stream piece by piece, and may hold pieces back until it has enough.

    candle: ``candle_core::streaming::StreamingModule``
    """

    @abstractmethod
    def step(self, xs: StreamTensor) -> StreamTensor:
        """What the next piece gives; nothing while the module waits for more."""

    @abstractmethod
    def reset_state(self) -> None:
        """Forget what was held back."""


class BinOp(Enum):
    """What a ``StreamingBinOp`` does with two streams."""

    Add = "add"
    Mul = "mul"
    Sub = "sub"
    Div = "div"


class StreamingBinOp:
    """An operation on two streams, step by step as soon as both are there; what one has more of is held back.

    candle: ``candle_core::streaming::StreamingBinOp``
    """

    def __init__(self, op: BinOp, dim: DimLike = D.Minus1) -> None:
        if not isinstance(op, BinOp):
            raise Error(f"StreamingBinOp: got {op!r}; takes a BinOp")
        self.op, self.dim = op, dim
        self._lhs, self._rhs = StreamTensor(), StreamTensor()

    @staticmethod
    def new(op: BinOp, dim: DimLike) -> StreamingBinOp:
        """The operation along the time axis ``dim``."""
        return StreamingBinOp(op, dim)

    def forward(self, lhs: Any, rhs: Any) -> Any:
        """The operation on two tensors of equal shapes. Raises as the tensor method of that name."""
        return getattr(lhs, self.op.value)(rhs)

    def step(self, lhs: StreamTensor, rhs: StreamTensor) -> StreamTensor:
        """The result for the steps that both streams now have. Raises as ``forward`` and ``Tensor.cat``."""
        left, right = self._lhs.cat2(lhs, self.dim), self._rhs.cat2(rhs, self.dim)
        both = min(left.seq_len(self.dim), right.seq_len(self.dim))
        left, left_over = left.split(self.dim, both)
        right, right_over = right.split(self.dim, both)
        done = StreamTensor() if both == 0 else StreamTensor(self.forward(left.as_option(), right.as_option()))
        self._lhs, self._rhs = left_over, right_over  # only now: a step that fails leaves everything as it was
        return done

    def reset_state(self) -> None:
        """Forget what was held back."""
        self._lhs.reset()
        self._rhs.reset()


class Map(StreamingModule):
    """A module, or a function, applied to each piece by itself. candle: ``candle_core::streaming::Map``."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def step(self, xs: StreamTensor) -> StreamTensor:
        """The module's result for this piece."""
        return xs.apply(self.module)

    def reset_state(self) -> None:
        """Nothing is held back."""
