"""The candle API in Python, recorded as a lazy graph, lowered to MLX, made for LoRA fine-tuning.

Names are resolved on first use, so that ``import metal_candle`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import blas

# Before anything imports mlx.core: on Linux this is what makes its matrix products fast.
blas.load()

__version__ = "2.0.0"

if TYPE_CHECKING:
    from .device import Device, DeviceInfo, DeviceType
    from .dtype import DType
    from .error import (
        CheckpointError,
        DataError,
        DeviceError,
        Error,
        InferenceError,
        ModelError,
        TrainingError,
    )
    from .shape import D, Shape
    from .tensor import GradStore, LazyTensor, Tensor, Var, compile, eval_all

_HOME = {
    "Device": "device",
    "DeviceInfo": "device",
    "DeviceType": "device",
    "DType": "dtype",
    "D": "shape",
    "Shape": "shape",
    "GradStore": "tensor",
    "LazyTensor": "tensor",
    "Tensor": "tensor",
    "Var": "tensor",
    "compile": "tensor",
    "eval_all": "tensor",
    **dict.fromkeys(
        ("CheckpointError", "DataError", "DeviceError", "Error", "InferenceError", "ModelError", "TrainingError"),
        "error",
    ),
}
_MODULES = ("compat", "error", "features", "graph", "inference", "kernels", "models", "nn", "training")

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
