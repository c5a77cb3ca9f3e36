"""Every error the package raises, one class per kind.

Each kind is an ``Error`` and the nearest built-in exception, so that ``except metal_candle.Error``
catches all of ours and ``except ValueError`` catches what Python code expects it to. A message is one
line: the operation, what it got, what it takes. The kinds mirror ``candle_core::Error`` and
metal-candle's error enums; a group's variants are attributes of the group
(``ModelError.FileNotFound(path=...)``).
"""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Root of all errors of this package."""


# --- dtypes -----------------------------------------------------------------------------------


class DTypeMismatchError(Error, TypeError):
    """Two operands differ in dtype. Convert one with ``to_dtype``: nothing is promoted silently."""

    def __init__(self, op: str, lhs: object, rhs: object) -> None:
        super().__init__(f"{op}: dtypes differ, lhs {lhs}, rhs {rhs}; convert one with to_dtype")
        self.op, self.lhs, self.rhs = op, lhs, rhs


class UnsupportedDTypeForOpError(Error, TypeError):
    """The operation is not defined for this dtype."""

    def __init__(self, op: str, dtype: object, takes: str) -> None:
        super().__init__(f"{op}: got dtype {dtype}; takes {takes}")
        self.op, self.dtype = op, dtype


class DTypeParseError(Error, ValueError):
    """The text or object names no dtype."""

    def __init__(self, value: object) -> None:
        super().__init__(f"dtype: cannot read {value!r}; takes u8, i16, u32, i32, i64, bf16, f16, f32 or f64")
        self.value = value


# --- dimensions and shapes --------------------------------------------------------------------


class DimOutOfRangeError(Error, IndexError):
    """A dimension does not exist in the shape."""

    def __init__(self, op: str, shape: tuple[int, ...], dim: int) -> None:
        rank = len(shape)
        takes = f"takes {-rank}..{rank - 1}" if rank else "a scalar has no dimensions"
        super().__init__(f"{op}: dim {dim} is out of range for shape {tuple(shape)}; {takes}")
        self.op, self.shape, self.dim = op, shape, dim


class DuplicateDimIndexError(Error, ValueError):
    """A dimension is named twice."""

    def __init__(self, op: str, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__(f"{op}: dims {tuple(dims)} name a dimension of shape {tuple(shape)} twice")
        self.op, self.shape, self.dims = op, shape, dims


class UnexpectedNumberOfDimsError(Error, ValueError):
    """The tensor's rank is not the one asked for."""

    def __init__(self, op: str, expected: object, shape: tuple[int, ...]) -> None:
        super().__init__(f"{op}: got rank {len(shape)}, shape {tuple(shape)}; takes rank {expected}")
        self.op, self.expected, self.shape = op, expected, shape


class ShapeMismatchError(Error, ValueError):
    """A shape is not the one the operation takes."""


class ShapeMismatchBinaryOpError(ShapeMismatchError):
    """Two operands' shapes do not fit each other."""

    def __init__(self, op: str, lhs: tuple[int, ...], rhs: tuple[int, ...], takes: str) -> None:
        super().__init__(f"{op}: got shapes {tuple(lhs)} and {tuple(rhs)}; takes {takes}")
        self.op, self.lhs, self.rhs = op, lhs, rhs


class UnexpectedShapeError(ShapeMismatchError):
    """A named tensor has another shape than the one asked for."""

    def __init__(self, name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
        super().__init__(f"{name}: expected shape {tuple(expected)}, got {tuple(got)}")
        self.name, self.expected, self.got = name, expected, got


class BroadcastIncompatibleShapesError(ShapeMismatchError):
    """A shape cannot be broadcast to another."""

    def __init__(self, src: tuple[int, ...], dst: tuple[int, ...]) -> None:
        super().__init__(f"broadcast_as: cannot broadcast shape {tuple(src)} to {tuple(dst)}")
        self.src_shape, self.dst_shape = src, dst


class NarrowInvalidArgsError(Error, IndexError):
    """A narrowing leaves the tensor's bounds."""

    def __init__(self, shape: tuple[int, ...], dim: int, start: int, length: int) -> None:
        super().__init__(
            f"narrow: start {start}, length {length} leave dim {dim} of shape {tuple(shape)}; "
            f"takes 0 <= start and start + length <= {shape[dim]}"
        )
        self.shape, self.dim, self.start, self.length = shape, dim, start, length


class InvalidIndexError(Error, IndexError):
    """An index lies outside the dimension it indexes."""

    def __init__(self, op: str, index: int, size: int) -> None:
        super().__init__(f"{op}: index {index} is out of range; takes 0..{size - 1}")
        self.op, self.index, self.size = op, index, size


# --- tensors and variables --------------------------------------------------------------------


class CannotFindTensorError(Error, KeyError):
    """No tensor of that name; the message lists the nearest names there are."""

    def __init__(self, path: str, nearest: list[str] | None = None) -> None:
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        self.path, self.message = path, f"cannot find tensor {path}{hint}"
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would show the repr
        return self.message


class CannotSetVarError(Error, RuntimeError):
    """A variable cannot take this value."""


class BackwardNotSupportedError(Error, NotImplementedError):
    """An operation between the loss and a variable has no derivative."""

    def __init__(self, op: str) -> None:
        super().__init__(f"backward: {op} has no gradient; detach() its input or give it a backward")
        self.op = op


class GradientNotFoundError(Error, KeyError):
    """The gradient store has no entry; ``grads.explain(var)`` says why."""

    def __str__(self) -> str:
        return str(self.args[0])


class GraphNodeNotFoundError(Error, KeyError):
    """A graph has no node of that id."""

    def __init__(self, node: int, count: int) -> None:
        super().__init__(f"graph: node {node} not found; this graph has {count} nodes, nodes() lists them")
        self.node = node

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


class NotEvaluatedError(Error, RuntimeError):
    """A value was asked for where there is only a recording, as while ``compile`` traces."""


class FeatureDisabledError(Error, RuntimeError):
    """A feature that is switched off was used."""

    def __init__(self, feature: str) -> None:
        super().__init__(
            f"feature `{feature}` not enabled; remove it from METAL_CANDLE_DISABLE or leave "
            f'features.disabled("{feature}")'
        )
        self.feature = feature


# --- groups, as metal-candle has them ---------------------------------------------------------


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
    StateError: type[TrainingError]


class InferenceError(ErrorGroup):
    """Generation was set up wrongly or failed."""

    InvalidConfig: type[InferenceError]
    InvalidSampling: type[InferenceError]
    SamplingError: type[InferenceError]
    CacheFull: type[InferenceError]


class CheckpointError(ErrorGroup):
    """A checkpoint or an adapter could not be written or read."""

    SaveFailed: type[CheckpointError]
    LoadFailed: type[CheckpointError]
    InvalidFormat: type[CheckpointError]


class DeviceError(ErrorGroup):
    """A device is missing or failed."""

    MetalUnavailable: type[DeviceError]
    CudaUnavailable: type[DeviceError]


class DataError(ErrorGroup):
    """A training file cannot be used; the message names the file and the line."""

    InvalidLine: type[DataError]
    InvalidFile: type[DataError]


def _variant(group: type[Error], name: str, text: str, builtin: type[Exception], *fields: str) -> None:
    """Add ``name`` to ``group``: a subclass of it and of ``builtin`` whose message is ``text``."""

    def __init__(self: Any, *args: object, **kwargs: object) -> None:
        values = dict(zip(fields, args, strict=False), **kwargs)
        if set(values) != set(fields):
            raise TypeError(f"{group.__name__}.{name} takes {', '.join(fields)}")
        self.__dict__.update(values)
        Exception.__init__(self, text.format(**values))

    def __str__(self: Any) -> str:
        return str(Exception.__str__(self)) if builtin is not KeyError else str(self.args[0])

    bases = (builtin,) if issubclass(builtin, group) else (group, builtin)
    doc = f"{text} Fields: {', '.join(fields)}."
    namespace = {"__init__": __init__, "__str__": __str__, "__doc__": doc, "__module__": __name__}
    setattr(group, name, type(name, bases, {**namespace, "__qualname__": f"{group.__name__}.{name}"}))


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
    "name",
    "expected",
    "actual",
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
_variant(TrainingError, "StateError", "training state error: {reason}", RuntimeError, "reason")
_variant(InferenceError, "InvalidConfig", "generation configuration: {reason}", ValueError, "reason")
_variant(InferenceError, "InvalidSampling", "sampling parameters: {reason}", ValueError, "reason")
_variant(InferenceError, "SamplingError", "token sampling failed: {reason}", RuntimeError, "reason")
_variant(
    InferenceError,
    "CacheFull",
    "KV-cache full: position {position} of {max_len}",
    RuntimeError,
    "position",
    "max_len",
)
_variant(CheckpointError, "SaveFailed", "failed to save: {reason}", OSError, "reason")
_variant(CheckpointError, "LoadFailed", "failed to load: {reason}", OSError, "reason")
_variant(CheckpointError, "InvalidFormat", "invalid checkpoint format: {reason}", ValueError, "reason")
_variant(DeviceError, "MetalUnavailable", "Metal device not available: {reason}", RuntimeError, "reason")
_variant(DeviceError, "CudaUnavailable", "CUDA device not available: {reason}", RuntimeError, "reason")
_variant(DataError, "InvalidLine", "{path}:{line}: {reason}", ValueError, "path", "line", "reason")
_variant(DataError, "InvalidFile", "{path}: {reason}", ValueError, "path", "reason")
