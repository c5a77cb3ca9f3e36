"""``VarBuilder``: where layers get their tensors from, by dotted name. candle: ``candle_nn::VarBuilder``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import CannotFindTensorError, UnexpectedShapeError
from ..shape import Shape, ShapeLike
from ..tensor.eager import Tensor
from .init import ZERO, Init
from .var_map import VarMap


class _Tensors:
    """A source of ready tensors. An entry is taken over when it is first asked for."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors, self.used = tensors, set[str]()

    def get(self, shape: Shape | None, name: str, init: Init, dtype: DType, device: Device) -> Tensor:
        if name not in self._tensors:
            raise CannotFindTensorError(name, difflib.get_close_matches(name, list(self._tensors), n=3))
        self.used.add(name)
        value = self._tensors[name]
        if shape is not None and tuple(value.shape) != tuple(shape):
            raise UnexpectedShapeError(name, shape, tuple(value.shape))
        tensor = value if isinstance(value, Tensor) else Tensor.from_mlx(value, device)
        return tensor if tensor.dtype is dtype or not tensor.dtype.is_float() else tensor.to_dtype(dtype)

    def contains(self, name: str) -> bool:
        return name in self._tensors

    def unused(self) -> list[str]:
        return [name for name in self._tensors if name not in self.used]


class _Variables:
    """A source that makes variables on demand."""

    def __init__(self, varmap: VarMap) -> None:
        self._varmap = varmap

    def get(self, shape: Shape | None, name: str, init: Init, dtype: DType, device: Device) -> Tensor:
        if shape is None:
            raise CannotFindTensorError(f"{name} (a VarMap makes tensors, so it needs their shape)")
        return self._varmap.get(shape, name, init, dtype, device)

    def contains(self, name: str) -> bool:
        return name in self._varmap.data()

    def unused(self) -> list[str]:
        return []


class _Zeros:
    """A source of zeros."""

    def get(self, shape: Shape | None, name: str, init: Init, dtype: DType, device: Device) -> Tensor:
        if shape is None:
            raise CannotFindTensorError(f"{name} (zeros need a shape)")
        return Tensor.zeros(shape, dtype, device)

    def contains(self, name: str) -> bool:
        return True

    def unused(self) -> list[str]:
        return []


@dataclass(frozen=True)
class VarBuilder:
    """A source of tensors together with a prefix, a dtype and a device."""

    _source: _Tensors | _Variables | _Zeros
    _dtype: DType
    _device: Device
    _path: tuple[str, ...] = field(default=())

    @staticmethod
    def from_varmap(varmap: VarMap, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """Variables made on demand."""
        return VarBuilder(_Variables(varmap), DType.of(dtype), Device.of(device))

    @staticmethod
    def from_tensors(tensors: Mapping[str, Any], dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """Ready tensors or MLX arrays by full name; float ones are converted to ``dtype`` when taken."""
        return VarBuilder(_Tensors(tensors), DType.of(dtype), Device.of(device))

    @staticmethod
    def zeros(dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """Zeros of every shape asked for."""
        return VarBuilder(_Zeros(), DType.of(dtype), Device.of(device))

    def pp(self, s: object) -> VarBuilder:
        """The builder one level down, at ``prefix.s``."""
        return replace(self, _path=(*self._path, str(s)))

    push_prefix = pp

    def root(self) -> VarBuilder:
        """The builder without a prefix."""
        return replace(self, _path=())

    def prefix(self) -> str:
        """The dotted prefix."""
        return ".".join(self._path)

    def device(self) -> Device:
        """Where its tensors are."""
        return self._device

    def dtype(self) -> DType:
        """The dtype its tensors get."""
        return self._dtype

    def to_dtype(self, dtype: DTypeLike) -> VarBuilder:
        """The builder with another dtype."""
        return replace(self, _dtype=DType.of(dtype))

    def path(self, name: str) -> str:
        """The full name of a tensor."""
        return ".".join((*self._path, name))

    def get(self, shape: ShapeLike, name: str) -> Tensor:
        """The tensor ``prefix.name``, of this shape.

        Raises ``CannotFindTensorError`` with the nearest names, ``UnexpectedShapeError`` with both shapes.
        """
        return self.get_with_hints(shape, name, ZERO)

    def get_with_hints(self, shape: ShapeLike, name: str, init: Init) -> Tensor:
        """As ``get``; a ``VarMap`` makes a missing one with ``init``."""
        return self._source.get(Shape.of(shape), self.path(name), init, self._dtype, self._device)

    def get_unchecked(self, name: str) -> Tensor:
        """The tensor ``prefix.name``, whatever its shape."""
        return self._source.get(None, self.path(name), ZERO, self._dtype, self._device)

    def contains_tensor(self, name: str) -> bool:
        """Whether there is a tensor ``prefix.name``."""
        return self._source.contains(self.path(name))

    def unused(self) -> list[str]:
        """The full names that no layer has asked for."""
        return self._source.unused()
