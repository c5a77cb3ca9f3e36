"""What every builder has, whatever its backend and hints. candle: ``candle_nn::var_builder::VarBuilderArgs``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Generic, TypeVar

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import ArgumentTypeError
from ..error.text import described, shown
from ..shape import Shape, ShapeLike
from ..tensor.eager import Tensor
from .backends import Backend
from .init import Init
from .stored import check_backend

H = TypeVar("H")
B = TypeVar("B", bound="VarBuilderArgs[Any]")


@dataclass(frozen=True, repr=False)
class VarBuilderArgs(Generic[H]):
    """A source of tensors together with a prefix, a dtype and a device.

    It does not change: as in candle, ``pp``, ``set_dtype`` … give another builder of the same source.
    """

    _backend: Backend[H]
    _dtype: DType
    _device: Device
    _path: tuple[str, ...] = field(default=())

    @classmethod
    def new_with_args(cls: type[B], backend: Backend[Any], dtype: DTypeLike, dev: DeviceLike = None) -> B:
        """A builder on a backend of any hints. Raises ``ArgumentTypeError`` for an object that is none."""
        check_backend("new_with_args", backend)
        return cls(backend, DType.of(dtype), Device.of(dev))

    # --- where it is --------------------------------------------------------------------------

    def pp(self: B, s: str | int) -> B:
        """The builder one level down, at ``prefix.s``; ``s`` may be a number, or hold dots. "" stays here.

        Raises ``ArgumentTypeError`` for anything else.
        """
        return replace(self, _path=(*self._path, *_parts("pp", s)))

    def push_prefix(self: B, s: str | int) -> B:
        """As ``pp``."""
        return self.pp(s)

    def set_prefix(self: B, prefix: str | int) -> B:
        """The builder at ``prefix``, seen from the root."""
        return replace(self, _path=_parts("set_prefix", prefix))

    def root(self: B) -> B:
        """The builder without a prefix."""
        return replace(self, _path=())

    def prefix(self) -> str:
        """The dotted prefix."""
        return ".".join(self._path)

    def path(self, name: str) -> str:
        """The full name of a tensor."""
        if not isinstance(name, str):
            raise ArgumentTypeError(f"get: got {described(name)} for the name; takes (shape, name), the name a str")
        return ".".join((*self._path, name))

    def clone(self: B) -> B:
        """The builder, which does not change. candle: ``VarBuilderArgs::clone``."""
        return self

    # --- how it gives them --------------------------------------------------------------------

    def device(self) -> Device:
        """Where its tensors are."""
        return self._device

    def dtype(self) -> DType:
        """The dtype its tensors get."""
        return self._dtype

    def to_dtype(self: B, dtype: DTypeLike) -> B:
        """The builder with another dtype."""
        return replace(self, _dtype=DType.of(dtype))

    def set_dtype(self: B, dtype: DTypeLike) -> B:
        """As ``to_dtype``: the builder with another dtype, this one keeps its own."""
        return self.to_dtype(dtype)

    def set_device(self: B, device: DeviceLike) -> B:
        """The builder with another device, this one keeps its own."""
        return replace(self, _device=Device.of(device))

    # --- the tensors --------------------------------------------------------------------------

    def get(self, shape: ShapeLike, name: str) -> Tensor:
        """The tensor ``prefix.name``, of this shape, in the builder's dtype and on its device.

        Raises ``CannotFindTensorError`` with the nearest names, ``UnexpectedShapeError`` with both shapes, and
        ``ArgumentValueError`` for stored integers that the dtype cannot hold.
        """
        hints: Any = getattr(self._backend, "Hints", Init)
        return self.get_with_hints(shape, name, hints.default())

    def get_with_hints(self, shape: ShapeLike, name: str, hints: H) -> Tensor:
        """As ``get``, with what the backend asks for besides: a ``VarMap`` makes a missing one with an ``Init``."""
        return self.get_with_hints_dtype(shape, name, hints, self._dtype)

    def get_with_hints_dtype(self, shape: ShapeLike, name: str, hints: H, dtype: DTypeLike) -> Tensor:
        """As ``get_with_hints``, in a dtype of its own."""
        if isinstance(shape, str):
            raise ArgumentTypeError(f"get: got {described(shape)} for the shape; takes (shape, name)")
        return self._backend.get(Shape.of(shape, "get"), self.path(name), hints, DType.of(dtype), self._device)

    def get_unchecked(self, name: str) -> Tensor:
        """The tensor ``prefix.name``, whatever its shape. candle's takes no notice of ``to_dtype``, this one does.

        Raises as ``get``, and ``ArgumentValueError`` where the source makes tensors, so that it needs their shape.
        """
        return self.get_unchecked_dtype(name, self._dtype)

    def get_unchecked_dtype(self, name: str, dtype: DTypeLike) -> Tensor:
        """As ``get_unchecked``, in a dtype of its own."""
        return self._backend.get_unchecked(self.path(name), DType.of(dtype), self._device)

    def contains_tensor(self, name: str) -> bool:
        """Whether there is a tensor ``prefix.name``; of a prefix of others it is False."""
        return self._backend.contains_tensor(self.path(name))

    def unused(self) -> list[str]:
        """The full names of stored tensors that nobody has asked for; of a source that makes its tensors, none."""
        unused = getattr(self._backend, "unused", None)
        return unused() if callable(unused) else []

    def __repr__(self) -> str:
        source = type(self._backend).__name__
        return f"{type(self).__name__}[{source}, prefix {shown(repr(self.prefix()))}, {self._dtype}, {self._device}]"


def _parts(op: str, prefix: object) -> tuple[str, ...]:
    if not isinstance(prefix, (str, Integral)):
        raise ArgumentTypeError(f"{op}: got {described(prefix)}; takes a name or a number")
    text = str(prefix)
    return (text,) if text else ()
