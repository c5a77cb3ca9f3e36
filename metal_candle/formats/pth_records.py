"""What the description in a PyTorch checkpoint may say: records of tensors, and the few names it may refer to.

What the file "calls" is looked up in ``CALLS``, a table of functions of this module, which make records or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Global(NamedTuple):
    """A name that the file refers to. It stands for itself and leads nowhere."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Pairs:
    """A dictionary: its entries in order. Keys are not hashed, they may be anything."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[tuple[Any, Any]] = []


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that is no tensor, of which nothing is kept: a size, a device, a set, settings of a program.

    ``made_by`` is the name that the file gives for it. Nothing is ever called by that name.
    """

    made_by: Global | None = None


@dataclass(frozen=True, eq=False)
class Unread:
    """A tensor, or a module of tensors, that is made in a way that is not read."""

    made_by: Global


@dataclass(frozen=True)
class Storage:
    """A storage: the name of its entry, and dtype and count of its elements."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor: where its elements lie in a storage, counted in elements; not yet checked against it."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
UNTYPED = Global("torch.storage", "UntypedStorage")
_DTYPES = frozenset(STORAGE_DTYPES.values()) | {
    *("uint16", "uint32", "uint64", "complex32", "complex64", "complex128"),
    *("float4_e2m1fn_x2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
}
_LONGEST, _RANK, _SHORT = 1 << 63, 64, 200


class Refused(Exception):
    """A reason to refuse the file, before it is known at which byte."""


# --- what the file may call -------------------------------------------------------------------


def is_sizes(value: Any) -> bool:
    """Whether it is a tuple of counts, not too many and none too large."""
    return (
        isinstance(value, tuple)
        and len(value) <= _RANK
        and all(type(size) is int and 0 <= size < _LONGEST for size in value)
    )


def _tensor(storage: Any, dtype: str, offset: Any, shape: Any, stride: Any, flags: Any) -> TensorRecord:
    sizes = is_sizes(shape) and is_sizes(stride) and is_sizes((offset,))
    if not isinstance(storage, Storage) or not sizes or len(shape) != len(stride):
        raise Refused("a tensor without a storage, or with sizes or strides that are none")
    if isinstance(flags, Pairs) and flags.items:
        raise Refused("a tensor that is conjugated or negated in place; save a copy of it")
    return TensorRecord(storage, dtype, offset, shape, stride)


def _rebuild_tensor_v2(*args: Any) -> TensorRecord:
    if not 6 <= len(args) <= 7 or not isinstance(args[0], Storage):
        raise Refused("a tensor of other arguments than PyTorch's")
    storage, offset, shape, stride = args[:4]
    return _tensor(storage, storage.dtype, offset, shape, stride, args[6] if len(args) == 7 else None)


def _rebuild_tensor_v3(*args: Any) -> TensorRecord:
    if not 7 <= len(args) <= 8 or not isinstance(args[6], Global) or args[6].name not in _DTYPES:
        raise Refused("a tensor of other arguments than PyTorch's")
    storage, offset, shape, stride = args[:4]
    return _tensor(storage, args[6].name, offset, shape, stride, args[7] if len(args) == 8 else None)


def _rebuild_parameter(*args: Any) -> TensorRecord | Unread:
    if len(args) < 3 or not isinstance(args[0], (TensorRecord, Unread)):
        raise Refused("a parameter of other arguments than PyTorch's")
    return args[0]


def _rebuild_from_type(*args: Any) -> TensorRecord | Unread:
    # (function, type, its arguments, attributes): a tensor with attributes, a buffer say, or one of a subclass.
    if len(args) != 4 or not isinstance(args[2], tuple):
        raise Refused("a tensor of other arguments than PyTorch's")
    function, kind, arguments = args[:3]
    if not isinstance(kind, Opaque) or kind.made_by is None:
        raise Refused("a tensor of a type that is none")
    if isinstance(function, Global) and function in _TENSORS and kind.made_by in _PLAIN_TYPES:
        return _TENSORS[function](*arguments)
    return Unread(kind.made_by)


def _ordered_dict(*args: Any) -> Pairs:
    # Its entries come as those of a dictionary do. Taking them from an argument, which the file could name a million
    # times, would let it grow without bound.
    if args:
        raise Refused("an OrderedDict made of arguments")
    return Pairs()


def _default_dict(*args: Any) -> Pairs:
    if len(args) > 1:
        raise Refused("a defaultdict made of arguments")
    return Pairs()


def _encoded(*args: Any) -> Any:
    # Bytes in protocols before 3. Long ones are no keys, and the same text could be named a million times.
    text, encoding = args if len(args) == 2 else (None, None)
    if isinstance(text, str) and encoding == "latin1" and len(text) <= _SHORT and max(text, default="") <= "\xff":
        return text.encode("latin1")
    return Opaque(Global("_codecs", "encode"))


def _deque(*args: Any) -> list[Any]:
    if args and args[0]:
        raise Refused("a deque made of arguments")
    return []


_TENSORS: dict[Any, Callable[..., TensorRecord | Unread]] = {
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
}
_PLAIN_TYPES = frozenset(
    {
        Global("torch", "Tensor"),
        Global("torch._tensor", "Tensor"),
        Global("torch.nn.parameter", "Parameter"),
        Global("torch.nn.parameter", "Buffer"),
    }
)
CALLS: dict[Global, Callable[..., Any]] = {
    **_TENSORS,
    Global("torch._tensor", "_rebuild_from_type"): _rebuild_from_type,
    Global("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("collections", "defaultdict"): _default_dict,
    Global("collections", "deque"): _deque,
    Global("_codecs", "encode"): _encoded,
}
NAMES = frozenset(
    [*CALLS, UNTYPED, *(Global("torch", n) for n in STORAGE_DTYPES), *(Global("torch", n) for n in _DTYPES)]
)
