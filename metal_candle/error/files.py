"""Errors of files of tensors: safetensors, npy, PyTorch checkpoints."""

from __future__ import annotations

from .base import Error
from .groups import ModelError
from .text import shown


def _line(path: object, reason: str) -> str:
    """One line, whatever names the path and the file have."""
    return f"{shown(path, 300)}: {shown(reason, 1000)}"


class IoError(Error, OSError):
    """A file cannot be opened, read or written."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(_line(path, reason))
        self.path, self.reason = path, reason


class NotFoundError(IoError, FileNotFoundError):
    """There is no file of that name."""

    def __init__(self, path: object, reason: str = "no such file") -> None:
        super().__init__(path, reason)


class SafeTensorError(ModelError.InvalidFormat):  # type: ignore[valid-type, misc]
    """A safetensors file is damaged or is none."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(reason=_line(path, reason))
        self.path = path


class UnsupportedSafeTensorDtypeError(Error, TypeError):
    """A safetensors file holds a dtype that tensors here do not have."""

    def __init__(self, name: str, dtype: str, takes: str) -> None:
        super().__init__(f"safetensors: tensor {shown(name)} is {shown(dtype)}; takes {takes}")
        self.name, self.dtype = name, dtype


class NpyError(Error, ValueError):
    """An npy or npz file is damaged, or holds what tensors here do not have."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(_line(path, reason))
        self.path, self.reason = path, reason


class PthError(Error, ValueError):
    """A PyTorch checkpoint is damaged, or holds what is not read."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(_line(path, reason))
        self.path, self.reason = path, reason
