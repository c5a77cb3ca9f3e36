"""Where a ``VarBuilder`` gets tensors from: the protocol, and the sources that need no file.

candle: ``candle_nn::var_builder::{Backend, SimpleBackend}``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol, TypeVar

import numpy as np

from ..device import Device
from ..dtype import DType
from ..error import ArgumentValueError, UnexpectedShapeError
from ..error.text import shown
from ..shape import Shape
from ..tensor.eager import Tensor
from .init import Init
from .missing import missing

Hints = TypeVar("Hints", contravariant=True)

# The bits of an integer that every float of the dtype holds exactly.
_DIGITS = {DType.BF16: 8, DType.F16: 11, DType.F32: 24, DType.F64: 53}


class Backend(Protocol[Hints]):
    """What ``VarBuilderArgs.new_with_args`` takes: a source of tensors by full name.

    A class attribute ``Hints`` is the type of its hints, whose ``default()`` is what ``vb.get`` passes; without one
    they are ``Init``. candle: ``var_builder::Backend``.
    """

    @abstractmethod
    def get(self, shape: Shape, name: str, hints: Hints, dtype: DType, dev: Device) -> Tensor:
        """The tensor of that name and shape, in ``dtype`` and on ``dev``."""

    @abstractmethod
    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        """The tensor of that name, whatever its shape."""

    @abstractmethod
    def contains_tensor(self, name: str) -> bool:
        """Whether there is a tensor of that name."""


class SimpleBackend(Backend[Init], Protocol):
    """What ``VarBuilder.from_backend`` takes: a source whose hints are how a new variable starts.

    A class that has its three methods is one, derived from it or not. candle: ``var_builder::SimpleBackend``.
    """


class Zeros(SimpleBackend):
    """Zeros under every name."""

    def get(self, shape: Shape, name: str, hints: Init, dtype: DType, dev: Device) -> Tensor:
        """Zeros."""
        return Tensor.zeros(shape, dtype, dev)

    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        """Raises ``ArgumentValueError``: zeros need a shape."""
        raise ArgumentValueError(f"get_unchecked {shown(name)}: zeros need a shape; takes get(shape, name)")

    def contains_tensor(self, name: str) -> bool:
        """Always."""
        return True


class StoredTensors(SimpleBackend):
    """Base of the sources that hold named tensors; each is read when it is asked for, and no other.

    ``get`` raises ``CannotFindTensorError`` with the nearest names, ``UnexpectedShapeError`` with both shapes, and
    as ``fitted``.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()

    @abstractmethod
    def names(self) -> Iterable[str]:
        """The names of all tensors."""

    @abstractmethod
    def shape_of(self, name: str) -> Shape | None:
        """The shape, if it is known without reading the tensor."""

    @abstractmethod
    def read(self, name: str, dev: Device) -> Tensor:
        """The tensor as it is stored, on any device; ``dev`` is where it will go."""

    def get(self, shape: Shape, name: str, hints: Init, dtype: DType, dev: Device) -> Tensor:
        """The tensor of that name and shape, converted."""
        if not self.contains_tensor(name):
            raise missing(name, self.names())
        tensor, known = None, self.shape_of(name)
        if known is None:
            tensor = self.read(name, dev)
            known = tensor.shape
        if tuple(known) != tuple(shape):
            raise UnexpectedShapeError(name, shape, known)
        return self._taken(name, self.read(name, dev) if tensor is None else tensor, dtype, dev)

    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        """The tensor of that name, converted."""
        if not self.contains_tensor(name):
            raise missing(name, self.names())
        return self._taken(name, self.read(name, dev), dtype, dev)

    def unused(self) -> list[str]:
        """The names that nobody has taken."""
        return [name for name in self.names() if name not in self._used]

    def _taken(self, name: str, tensor: Tensor, dtype: DType, dev: Device) -> Tensor:
        result = fitted(tensor, name, dtype, dev)
        self._used.add(name)
        return result


def fitted(tensor: Tensor, name: str, dtype: DType, dev: Device) -> Tensor:
    """A stored tensor in the builder's dtype and on its device; the tensor itself where it is so already.

    As in candle integers are converted, too. Where candle would change their values, ids of more than 256 in bf16
    say, this raises ``ArgumentValueError``.
    """
    if tensor.dtype is DType.F64:  # which only the CPU has
        return tensor.to_dtype(dtype).to_device(dev)
    moved = tensor.to_device(dev)
    converted = moved.to_dtype(dtype)
    if tensor.dtype.is_int() and dtype is not tensor.dtype:
        _check_integers(moved, converted, name)
    return converted


def _check_integers(before: Tensor, after: Tensor, name: str) -> None:
    # The first bit of a signed one is its sign.
    bits = 8 * before.dtype.size_in_bytes() - (before.dtype not in (DType.U8, DType.U32))
    if bits <= _DIGITS.get(after.dtype, 0):
        return
    integers = before.numpy()
    if after.dtype.is_float():
        # The largest integer is never exact here, but comes back as it was, as casts saturate.
        changed = (after.to_dtype(before.dtype).numpy() != integers) | (integers == np.iinfo(integers.dtype).max)
    else:
        changed = after.numpy() != integers
    if changed.any():
        first = integers.reshape(-1)[int(np.argmax(changed))]
        raise ArgumentValueError(
            f"{shown(name)}: holds {first} as {before.dtype}, which {after.dtype} cannot hold; "
            f"take it in another dtype, with get_with_hints_dtype or to_dtype"
        )
