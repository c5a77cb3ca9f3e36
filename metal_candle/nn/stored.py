"""Sources of stored tensors: a dictionary, safetensors, npz and PyTorch files. Each tensor is read when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, Union

import mlx.core as mx
import numpy as np

from ..device import Device
from ..error import ArgumentTypeError
from ..error.text import described, shown
from ..npy import NpzTensors
from ..pickle import PthTensors
from ..safetensors import SliceSafetensors, TensorView
from ..shape import Shape
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from .backends import SimpleBackend, StoredTensors


class TensorMap(StoredTensors):
    """A dictionary of eager tensors, MLX arrays or NumPy arrays."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__()
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        """The dictionary's keys."""
        return self._tensors

    def contains_tensor(self, name: str) -> bool:
        """Whether it is a key."""
        return name in self._tensors

    def shape_of(self, name: str) -> Shape | None:
        """The shape of the value."""
        return Shape(self._checked(name).shape)

    def read(self, name: str, dev: Device) -> Tensor:
        """The value; of a tensor itself, which shares what it shares: a ``Var`` stays one."""
        value = self._checked(name)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, np.ndarray):
            return Tensor.from_numpy(value, Device.Cpu)
        return Tensor.from_mlx(value, Device.Cpu if value.dtype == mx.float64 else dev)

    def _checked(self, name: str) -> Tensor | mx.array | np.ndarray[Any, Any]:
        value = self._tensors[name]
        if isinstance(value, (Tensor, mx.array, np.ndarray)):
            return value
        eager = "; eval() makes one" if isinstance(value, TensorBase) else ""
        raise ArgumentTypeError(f"{shown(name)}: got {described(value)}; takes eager tensors and arrays{eager}")


class SafeTensorWithRouting(StoredTensors):
    """Opened safetensors files, and which of them holds which tensor; without ``routing`` the last that has it.

    candle: ``var_builder::SafeTensorWithRouting``.
    """

    def __init__(self, safetensors: Sequence[SliceSafetensors], routing: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self._safetensors = list(safetensors)
        if routing is None:
            routing = {name: at for at, file in enumerate(safetensors) for name, _ in file.tensors()}
        self._routing = dict(routing)

    def load_part(self, name: str, dim: int, start: int, stop: int, dev: Device) -> Tensor:
        """A part of a tensor that is there. Raises as ``TensorView.load_part``."""
        view = self.view(name)
        self._used.add(name)
        return view.load_part(dim, start, stop, Device.Cpu if view.dtype == "F64" else dev)

    def view(self, name: str) -> TensorView:
        """A tensor that is there, not read yet."""
        return self._safetensors[self._routing[name]].get(name)

    def names(self) -> Iterable[str]:
        """The names of the tensors of all files."""
        return self._routing

    def contains_tensor(self, name: str) -> bool:
        """Whether a file holds it."""
        return name in self._routing

    def shape_of(self, name: str) -> Shape | None:
        """The shape, from the header."""
        return self.view(name).shape

    def read(self, name: str, dev: Device) -> Tensor:
        """Read one tensor. Raises as ``safetensors.load``."""
        view = self.view(name)
        return view.load(Device.Cpu if view.dtype == "F64" else dev)


A = TypeVar("A", bound=Union[NpzTensors, PthTensors])


class _ArchiveBackend(StoredTensors, Generic[A]):
    """The tensors of an archive, whose names are read once."""

    def __init__(self, tensors: A) -> None:
        super().__init__()
        self._tensors: A = tensors
        self._names = dict.fromkeys(tensors.names())

    def names(self) -> Iterable[str]:
        """The names of the tensors."""
        return self._names

    def contains_tensor(self, name: str) -> bool:
        """Whether the file holds it."""
        return name in self._names

    def read(self, name: str, dev: Device) -> Tensor:
        """Read one tensor. Raises ``NpyError``, of a checkpoint ``PthError``."""
        tensor = self._tensors.get(name)
        assert tensor is not None  # the file's names do not change
        return tensor


class NpzBackend(_ArchiveBackend[NpzTensors]):
    """The arrays of an npz file."""

    def shape_of(self, name: str) -> Shape | None:
        """The shape, from the array's header. Raises ``NpyError``."""
        return self._tensors.get_shape_and_dtype(name)[0]


class PthBackend(_ArchiveBackend[PthTensors]):
    """The tensors of a PyTorch checkpoint."""

    def shape_of(self, name: str) -> Shape | None:
        """Not known: a tensor of a dtype that is not read has none."""
        return None


def as_backend(source: object) -> SimpleBackend:
    """What ``VarBuilder.from_backend`` takes, as a backend: one already, or what candle implements it for.

    Raises ``ArgumentTypeError`` for an object that lacks one of the methods.
    """
    if isinstance(source, Mapping):
        return TensorMap(source)
    if isinstance(source, SliceSafetensors):
        return SafeTensorWithRouting([source])
    if isinstance(source, NpzTensors):
        return NpzBackend(source)
    if isinstance(source, PthTensors):
        return PthBackend(source)
    check_backend("from_backend", source)
    return source  # type: ignore[return-value]


def check_backend(op: str, source: object) -> None:
    """Raise ``ArgumentTypeError`` unless ``source`` has the methods of a backend."""
    lacking = [m for m in ("get", "get_unchecked", "contains_tensor") if not callable(getattr(source, m, None))]
    if lacking or isinstance(source, type):
        has = f", which has no {' and no '.join(lacking)}" if lacking else ", a class"
        raise ArgumentTypeError(
            f"{op}: got {described(source)}{has}; takes an object with get, get_unchecked and contains_tensor"
        )
