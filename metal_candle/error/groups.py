"""Error enums as metal-candle has them: a group per subject, its variants as attributes of the group."""

from __future__ import annotations

from typing import Any

from .base import Error
from .tensor import ShapeMismatchError


class ErrorGroup(Error):
    """An error enum: its variants are attributes, subclasses of it that are filled by fields."""

    reason: str

    def __init__(self, *values: object, **fields: object) -> None:
        super().__init__(*values, *fields.values())


class ModelError(ErrorGroup):
    """Loading or describing a model went wrong."""

    FileNotFound: type[ModelError]
    InvalidFormat: type[ModelError]
    IncompatibleVersion: type[ModelError]
    InvalidConfig: type[ModelError]
    ShapeMismatch: type[ModelError]
    DownloadFailed: type[ModelError]
    TokenizerFailed: type[ModelError]
    TokenizationFailed: type[ModelError]
    ChatTemplateFailed: type[ModelError]


class TrainingError(ErrorGroup):
    """Training was set up wrongly or failed."""

    InvalidConfig: type[TrainingError]
    InvalidLoRAConfig: type[TrainingError]
    Failed: type[TrainingError]
    Gradient: type[TrainingError]
    StateError: type[TrainingError]


class InferenceError(ErrorGroup):
    """Generation was set up wrongly or failed."""

    InvalidConfig: type[InferenceError]
    InvalidSampling: type[InferenceError]
    Failed: type[InferenceError]
    SamplingError: type[InferenceError]
    CacheFull: type[InferenceError]
    EndOfSequence: type[InferenceError]


class CheckpointError(ErrorGroup):
    """A checkpoint or an adapter could not be written or read."""

    SaveFailed: type[CheckpointError]
    LoadFailed: type[CheckpointError]
    InvalidFormat: type[CheckpointError]


class DeviceError(ErrorGroup):
    """A device is missing or failed."""

    MetalUnavailable: type[DeviceError]
    CudaUnavailable: type[DeviceError]
    InitializationFailed: type[DeviceError]
    AllocationFailed: type[DeviceError]
    OperationFailed: type[DeviceError]


class EmbeddingError(ErrorGroup):
    """A sentence embedding could not be made."""

    DownloadFailed: type[EmbeddingError]
    ModelNotFound: type[EmbeddingError]
    TokenizerFailed: type[EmbeddingError]
    TokenizationFailed: type[EmbeddingError]
    EmptyInput: type[EmbeddingError]
    InvalidConfig: type[EmbeddingError]
    DimensionMismatch: type[EmbeddingError]


class DataError(ErrorGroup):
    """A training file cannot be used; the message names the file and the line."""

    InvalidLine: type[DataError]
    InvalidFile: type[DataError]


def _variant(
    group: type[Error], variant: str, text: str, builtin: type[Exception], *fields: str, **optional: object
) -> None:
    """Add ``variant`` to ``group``: a subclass of it and of ``builtin`` whose message is ``text``.

    ``optional`` are fields that may be left out, with their values then.
    """
    fields = (*fields, *optional)

    def __init__(self: Any, *args: object, **kwargs: object) -> None:
        values = {**optional, **dict(zip(fields, args, strict=False), **kwargs)}
        if set(values) != set(fields):
            raise TypeError(f"{group.__name__}.{variant} takes {', '.join(fields)}")
        self.__dict__.update(values)
        Exception.__init__(self, text.format(**values))

    bases = (builtin,) if issubclass(builtin, group) else (group, builtin)
    doc = f"{text} Fields: {', '.join(fields)}."
    namespace = {"__init__": __init__, "__doc__": doc, "__module__": __name__}
    setattr(group, variant, type(variant, bases, {**namespace, "__qualname__": f"{group.__name__}.{variant}"}))


_variant(ModelError, "FileNotFound", "model file not found: {path}", FileNotFoundError, "path")
_variant(ModelError, "InvalidFormat", "invalid model format: {reason}", ValueError, "reason")
_variant(
    ModelError,
    "IncompatibleVersion",
    "incompatible model version: expected {expected}, found {found}",
    ValueError,
    "expected",
    "found",
)
_variant(ModelError, "InvalidConfig", "invalid model configuration: {reason}", ValueError, "reason")
_variant(
    ModelError,
    "ShapeMismatch",
    "shape mismatch: {name} is {actual}, the configuration asks for {expected}",
    ShapeMismatchError,
    "expected",
    "actual",
    name="a tensor",
)
_variant(ModelError, "DownloadFailed", "download failed: {reason}", OSError, "reason")
_variant(ModelError, "TokenizerFailed", "tokenizer loading failed: {reason}", ValueError, "reason")
_variant(ModelError, "TokenizationFailed", "tokenization failed: {reason}", ValueError, "reason")
_variant(ModelError, "ChatTemplateFailed", "chat template failed: {reason}", ValueError, "reason")
_variant(TrainingError, "InvalidConfig", "invalid training configuration: {reason}", ValueError, "reason")
_variant(
    TrainingError,
    "InvalidLoRAConfig",
    "invalid LoRA configuration: {reason}",
    TrainingError.InvalidConfig,
    "reason",
)
_variant(TrainingError, "Failed", "training failed: {reason}", RuntimeError, "reason")
_variant(TrainingError, "Gradient", "gradient error: {reason}", RuntimeError, "reason")
_variant(TrainingError, "StateError", "training state error: {reason}", RuntimeError, "reason")
_variant(InferenceError, "InvalidConfig", "generation configuration: {reason}", ValueError, "reason")
_variant(InferenceError, "InvalidSampling", "sampling parameters: {reason}", ValueError, "reason")
_variant(InferenceError, "Failed", "generation failed: {reason}", RuntimeError, "reason")
_variant(InferenceError, "SamplingError", "token sampling failed: {reason}", RuntimeError, "reason")
_variant(
    InferenceError,
    "CacheFull",
    "KV-cache full: position {position} of {max_len}",
    RuntimeError,
    "position",
    "max_len",
)
_variant(InferenceError, "EndOfSequence", "end of sequence at position {position}", RuntimeError, "position")
_variant(CheckpointError, "SaveFailed", "failed to save: {reason}", OSError, "reason")
_variant(CheckpointError, "LoadFailed", "failed to load: {reason}", OSError, "reason")
_variant(CheckpointError, "InvalidFormat", "invalid checkpoint format: {reason}", ValueError, "reason")
_variant(DeviceError, "MetalUnavailable", "Metal device not available: {reason}", RuntimeError, "reason")
_variant(DeviceError, "CudaUnavailable", "CUDA device not available: {reason}", RuntimeError, "reason")
_variant(DeviceError, "InitializationFailed", "device initialization failed: {reason}", RuntimeError, "reason")
_variant(
    DeviceError,
    "AllocationFailed",
    "memory allocation failed: {requested_bytes} bytes were asked for{what}",
    MemoryError,
    "requested_bytes",
    what="",
)
_variant(DeviceError, "OperationFailed", "tensor operation failed: {operation}", RuntimeError, "operation")
_variant(EmbeddingError, "DownloadFailed", "download failed: {reason}", OSError, "reason")
_variant(EmbeddingError, "ModelNotFound", "model not found: {model_id}", OSError, "model_id")
_variant(EmbeddingError, "TokenizerFailed", "tokenizer loading failed: {reason}", RuntimeError, "reason")
_variant(EmbeddingError, "TokenizationFailed", "tokenization failed: {reason}", RuntimeError, "reason")
_variant(EmbeddingError, "EmptyInput", "cannot encode empty text", ValueError)
_variant(EmbeddingError, "InvalidConfig", "embedding configuration: {reason}", ValueError, "reason")
_variant(
    EmbeddingError,
    "DimensionMismatch",
    "dimension mismatch: expected {expected}, got {actual}",
    ValueError,
    "expected",
    "actual",
)
_variant(DataError, "InvalidLine", "{path}:{line}: {reason}", ValueError, "path", "line", "reason")
_variant(DataError, "InvalidFile", "{path}: {reason}", ValueError, "path", "reason")
