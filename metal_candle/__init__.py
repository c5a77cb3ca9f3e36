"""The candle API in Python, recorded as a lazy graph, lowered to MLX, made for LoRA fine-tuning.

Names are resolved on first use, so that ``import metal_candle`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import blas, settings
from .version import VERSION

if settings.DEBUG.words:
    # Whoever sets the variable wants to see the lines, whether or not the program configures logging.
    settings.show_logged()

# Before anything imports mlx.core: on Linux this is what makes its matrix products fast.
blas.load()

__version__ = VERSION

if TYPE_CHECKING:
    from . import (
        compat,
        display,
        embeddings,
        error,
        features,
        graph,
        inference,
        kernels,
        models,
        nn,
        npy,
        quantized,
        safetensors,
        scalar,
        streaming,
        test_utils,
        training,
        utils,
    )
    from . import pickle as pickle
    from .device import Device, DeviceInfo, DeviceLocation, DeviceType
    from .dtype import DType
    from .error import (
        ArgumentTypeError,
        ArgumentValueError,
        BackwardNotSupportedError,
        BroadcastIncompatibleShapesError,
        CannotFindTensorError,
        CannotSetVarError,
        CheckpointError,
        Conv1dInvalidArgsError,
        DataError,
        DeviceError,
        DeviceMismatchBinaryOpError,
        DimOutOfRangeError,
        DTypeMismatchBinaryOpError,
        DTypeMismatchError,
        DTypeParseError,
        DuplicateDimIndexError,
        EmbeddingError,
        EmptyTensorError,
        Error,
        FeatureDisabledError,
        GradientNotFoundError,
        GraphNodeNotFoundError,
        InferenceError,
        InvalidIndexError,
        IoError,
        MethodNotFoundError,
        ModelError,
        NarrowInvalidArgsError,
        NotEvaluatedError,
        NotFoundError,
        NpyError,
        OnlySingleDimensionError,
        OpRequiresAtLeastOneTensorError,
        OpRequiresAtLeastTwoTensorsError,
        PthError,
        SafeTensorError,
        ShapeMismatchBinaryOpError,
        ShapeMismatchCatError,
        ShapeMismatchError,
        ShapeMismatchSplitError,
        TrainingError,
        UnexpectedDTypeError,
        UnexpectedNumberOfDimsError,
        UnexpectedShapeError,
        UnsupportedDTypeForOpError,
        UnsupportedSafeTensorDtypeError,
    )
    from .graph.graph import ComputationGraph
    from .graph.node import TensorId
    from .graph.operations.comparison import CmpOp
    from .layout import Layout
    from .scalar import Scalar
    from .shape import D, Shape
    from .streaming import StreamingBinOp, StreamingModule, StreamTensor
    from .tensor import GradStore, LazyTensor, Tensor, Var, eval_all
    from .tensor import compile as compile
    from .tensor.custom_op import CustomOp1, CustomOp2, CustomOp3, InplaceOp1, InplaceOp2, InplaceOp3
    from .tensor.eager_chains import EagerPerformanceWarning
    from .tensor.evaluation import Evaluation
    from .tensor.executor import AsyncExecutor, eval_all_async
    from .tensor.growth import GraphGrowthWarning

__all__ = [
    "VERSION",
    "ArgumentTypeError",
    "ArgumentValueError",
    "AsyncExecutor",
    "BackwardNotSupportedError",
    "BroadcastIncompatibleShapesError",
    "CannotFindTensorError",
    "CannotSetVarError",
    "CheckpointError",
    "CmpOp",
    "ComputationGraph",
    "Conv1dInvalidArgsError",
    "CustomOp1",
    "CustomOp2",
    "CustomOp3",
    "D",
    "DType",
    "DTypeMismatchBinaryOpError",
    "DTypeMismatchError",
    "DTypeParseError",
    "DataError",
    "Device",
    "DeviceError",
    "DeviceInfo",
    "DeviceLocation",
    "DeviceMismatchBinaryOpError",
    "DeviceType",
    "DimOutOfRangeError",
    "DuplicateDimIndexError",
    "EagerPerformanceWarning",
    "EmbeddingError",
    "EmptyTensorError",
    "Error",
    "Evaluation",
    "FeatureDisabledError",
    "GradStore",
    "GradientNotFoundError",
    "GraphGrowthWarning",
    "GraphNodeNotFoundError",
    "InferenceError",
    "InplaceOp1",
    "InplaceOp2",
    "InplaceOp3",
    "InvalidIndexError",
    "IoError",
    "Layout",
    "LazyTensor",
    "MethodNotFoundError",
    "ModelError",
    "NarrowInvalidArgsError",
    "NotEvaluatedError",
    "NotFoundError",
    "NpyError",
    "OnlySingleDimensionError",
    "OpRequiresAtLeastOneTensorError",
    "OpRequiresAtLeastTwoTensorsError",
    "PthError",
    "SafeTensorError",
    "Scalar",
    "Shape",
    "ShapeMismatchBinaryOpError",
    "ShapeMismatchCatError",
    "ShapeMismatchError",
    "ShapeMismatchSplitError",
    "StreamTensor",
    "StreamingBinOp",
    "StreamingModule",
    "Tensor",
    "TensorId",
    "TrainingError",
    "UnexpectedDTypeError",
    "UnexpectedNumberOfDimsError",
    "UnexpectedShapeError",
    "UnsupportedDTypeForOpError",
    "UnsupportedSafeTensorDtypeError",
    "Var",
    "__version__",
    "compat",
    "display",
    "embeddings",
    "error",
    "eval_all",
    "eval_all_async",
    "features",
    "graph",
    "inference",
    "kernels",
    "models",
    "nn",
    "npy",
    "quantized",
    "safetensors",
    "scalar",
    "streaming",
    "test_utils",
    "training",
    "utils",
]

_HOME = {
    "layout": "Layout",
    "graph.graph": "ComputationGraph",
    "graph.node": "TensorId",
    "graph.operations.comparison": "CmpOp",
    "tensor.eager_chains": "EagerPerformanceWarning",
    "tensor.evaluation": "Evaluation",
    "tensor.executor": "AsyncExecutor eval_all_async",
    "tensor.growth": "GraphGrowthWarning",
    "tensor.custom_op": "CustomOp1 CustomOp2 CustomOp3 InplaceOp1 InplaceOp2 InplaceOp3",
    "error": (
        "ArgumentTypeError ArgumentValueError "
        "BackwardNotSupportedError BroadcastIncompatibleShapesError CannotFindTensorError "
        "CannotSetVarError CheckpointError Conv1dInvalidArgsError DTypeMismatchBinaryOpError "
        "DTypeMismatchError DTypeParseError DataError DeviceError EmbeddingError DeviceMismatchBinaryOpError "
        "DimOutOfRangeError DuplicateDimIndexError EmptyTensorError Error FeatureDisabledError "
        "GradientNotFoundError GraphNodeNotFoundError InferenceError InvalidIndexError IoError "
        "MethodNotFoundError ModelError NarrowInvalidArgsError NotEvaluatedError NotFoundError NpyError "
        "OnlySingleDimensionError OpRequiresAtLeastOneTensorError OpRequiresAtLeastTwoTensorsError "
        "PthError SafeTensorError ShapeMismatchBinaryOpError ShapeMismatchCatError "
        "ShapeMismatchError ShapeMismatchSplitError TrainingError UnexpectedDTypeError "
        "UnexpectedNumberOfDimsError UnexpectedShapeError UnsupportedDTypeForOpError "
        "UnsupportedSafeTensorDtypeError "
    ),
    "device": "Device DeviceInfo DeviceLocation DeviceType",
    "dtype": "DType",
    "scalar": "Scalar",
    "shape": "D Shape",
    "streaming": "StreamTensor StreamingBinOp StreamingModule",
    "tensor": "GradStore LazyTensor Tensor Var compile eval_all",
}
_NAMES = {name: module for module, names in _HOME.items() for name in names.split()}
# Not in __all__: `from metal_candle import *` must not hide Python's own compile and pickle.
_MODULES = (frozenset(__all__) | {"pickle"}) - set(_NAMES) - {"VERSION", "__version__"}


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
    return sorted({*_NAMES, *_MODULES, *__all__})
