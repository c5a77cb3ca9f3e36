"""The candle API in Python, recorded as a lazy graph, lowered to MLX, made for LoRA fine-tuning.

Names are resolved on first use, so that ``import metal_candle`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import blas, settings
from .version import VERSION

if settings.DEBUG.words:
    import logging

    # Whoever sets the variable wants to see the lines, whether or not the program configures logging.
    logging.getLogger(__name__).addHandler(logging.StreamHandler())
    logging.getLogger(__name__).setLevel(logging.INFO)

# Before anything imports mlx.core: on Linux this is what makes its matrix products fast.
blas.load()

__version__ = VERSION

if TYPE_CHECKING:
    from . import (
        compat,
        display,
        error,
        features,
        graph,
        inference,
        kernels,
        models,
        nn,
        npy,
        pickle,
        quantized,
        safetensors,
        scalar,
        streaming,
        test_utils,
        training,
        utils,
    )
    from .device import Device, DeviceInfo, DeviceLocation, DeviceType
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
    from .scalar import Scalar
    from .shape import D, Shape
    from .streaming import StreamingBinOp, StreamingModule, StreamTensor
    from .tensor import GradStore, LazyTensor, Tensor, Var, compile, eval_all

__all__ = [
    "VERSION",
    "CheckpointError",
    "D",
    "DType",
    "DataError",
    "Device",
    "DeviceError",
    "DeviceInfo",
    "DeviceLocation",
    "DeviceType",
    "Error",
    "GradStore",
    "InferenceError",
    "LazyTensor",
    "ModelError",
    "Scalar",
    "Shape",
    "StreamTensor",
    "StreamingBinOp",
    "StreamingModule",
    "Tensor",
    "TrainingError",
    "Var",
    "__version__",
    "compat",
    "compile",
    "display",
    "error",
    "eval_all",
    "features",
    "graph",
    "inference",
    "kernels",
    "models",
    "nn",
    "npy",
    "pickle",
    "quantized",
    "safetensors",
    "scalar",
    "streaming",
    "test_utils",
    "training",
    "utils",
]

_HOME = {
    "device": "Device DeviceInfo DeviceLocation DeviceType",
    "dtype": "DType",
    "scalar": "Scalar",
    "shape": "D Shape",
    "streaming": "StreamTensor StreamingBinOp StreamingModule",
    "tensor": "GradStore LazyTensor Tensor Var compile eval_all",
    "error": "CheckpointError DataError DeviceError Error InferenceError ModelError TrainingError",
}
_NAMES = {name: module for module, names in _HOME.items() for name in names.split()}
_MODULES = frozenset(__all__) - set(_NAMES) - {"VERSION", "__version__"}


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
