"""Builders whose source has the tensors under other names. candle: ``var_builder::{Rename, Renamer}``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Union

from ..constructors import New
from ..device import Device
from ..dtype import DType
from ..error import ArgumentTypeError, CannotFindTensorError, UnexpectedShapeError
from ..error.text import described, shown
from ..shape import Shape
from ..tensor.eager import Tensor
from .backends import SimpleBackend
from .init import Init
from .var_builder_args import VarBuilderArgs


class Renamer(Protocol):
    """Makes of the name that is asked for the one that is stored; a function does, too."""

    def rename(self, v: str) -> str:
        """The stored name."""


class Rename(New, SimpleBackend):
    """The source of ``inner``, asked by the names that ``renamer`` makes of those asked for.

    Errors show both names.
    """

    def __init__(self, inner: VarBuilderArgs[Init], renamer: Union[Renamer, Callable[[str], str]]) -> None:
        rename: Any = getattr(renamer, "rename", renamer)
        if not callable(rename):
            raise ArgumentTypeError(f"rename: got {described(renamer)}; takes a function of a name, or a Renamer")
        self._inner, self._rename = inner, rename

    def get(self, shape: Shape, name: str, hints: Init, dtype: DType, dev: Device) -> Tensor:
        """The tensor of the stored name."""
        with self._both_names(name) as stored:
            return self._inner.set_device(dev).get_with_hints_dtype(shape, stored, hints, dtype)

    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        """The tensor of the stored name."""
        with self._both_names(name) as stored:
            return self._inner.set_device(dev).get_unchecked_dtype(stored, dtype)

    def contains_tensor(self, name: str) -> bool:
        """Whether there is one of the stored name."""
        return self._inner.contains_tensor(self._stored(name))

    def unused(self) -> list[str]:
        """The stored names that nobody has asked for."""
        return self._inner.unused()

    def _stored(self, name: str) -> str:
        stored = self._rename(name)
        if not isinstance(stored, str):
            raise ArgumentTypeError(f"rename {shown(name)}: the renamer gave {described(stored)}; takes a name, a str")
        return stored

    @contextmanager
    def _both_names(self, name: str) -> Iterator[str]:
        stored = self._stored(name)
        try:
            yield stored
        except CannotFindTensorError as error:
            if error.path == name:
                raise
            raise CannotFindTensorError(error.path, error.nearest, error.note, name) from None
        except UnexpectedShapeError as error:
            if error.name == name:
                raise
            raise UnexpectedShapeError(error.name, error.expected, error.got, name) from None
