"""The pickle inside a PyTorch checkpoint, interpreted without Python's unpickler: nothing in it is ever called.

The opcodes build plain data. A global is only a name on a short list; what the file "calls" is looked up in a table
of functions of this module, which make records of tensors. Everything else is refused with its name.

Opcodes: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..error import PthError


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


class Opaque:
    """A value that is no tensor and holds none: a size, a device, a set, bytes."""

    __slots__ = ()


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
_UNTYPED = Global("torch.storage", "UntypedStorage")
_DTYPES = frozenset(STORAGE_DTYPES.values()) | {
    *("uint16", "uint32", "uint64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
}
_LONGEST, _RANK = 1 << 63, 64


class _Refused(Exception):
    """A reason to refuse the file, before it is known at which byte."""


# --- what the file may call -------------------------------------------------------------------


def _is_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _RANK
        and all(type(size) is int and 0 <= size < _LONGEST for size in value)
    )


def _tensor(storage: Any, dtype: str, offset: Any, shape: Any, stride: Any, flags: Any) -> TensorRecord:
    sizes = _is_sizes(shape) and _is_sizes(stride) and _is_sizes((offset,))
    if not isinstance(storage, Storage) or not sizes or len(shape) != len(stride):
        raise _Refused("a tensor without a storage, or with sizes or strides that are none")
    if isinstance(flags, Pairs) and flags.items:
        raise _Refused("a tensor that is conjugated or negated in place; save a copy of it")
    return TensorRecord(storage, dtype, offset, shape, stride)


def _rebuild_tensor_v2(*args: Any) -> TensorRecord:
    if not 6 <= len(args) <= 7 or not isinstance(args[0], Storage):
        raise _Refused("a tensor of other arguments than PyTorch's")
    storage, offset, shape, stride = args[:4]
    return _tensor(storage, storage.dtype, offset, shape, stride, args[6] if len(args) == 7 else None)


def _rebuild_tensor_v3(*args: Any) -> TensorRecord:
    if not 7 <= len(args) <= 8 or not isinstance(args[6], Global) or args[6].name not in _DTYPES:
        raise _Refused("a tensor of other arguments than PyTorch's")
    storage, offset, shape, stride = args[:4]
    return _tensor(storage, args[6].name, offset, shape, stride, args[7] if len(args) == 8 else None)


def _rebuild_parameter(*args: Any) -> TensorRecord:
    if len(args) < 3 or not isinstance(args[0], TensorRecord):
        raise _Refused("a parameter of other arguments than PyTorch's")
    return args[0]


def _ordered_dict(*args: Any) -> Pairs:
    # Its entries come as those of a dictionary do. Taking them from an argument, which the file could name a million
    # times, would let it grow without bound.
    if args:
        raise _Refused("an OrderedDict made of arguments")
    return Pairs()


def _opaque(*_: Any) -> Opaque:
    return Opaque()


_CALLS: dict[Global, Callable[..., Any]] = {
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("torch", "Size"): _opaque,
    Global("torch", "device"): _opaque,
    Global("_codecs", "encode"): _opaque,
    Global("builtins", "set"): _opaque,
    Global("__builtin__", "set"): _opaque,
}
_NAMES = frozenset(
    [*_CALLS, _UNTYPED, *(Global("torch", n) for n in STORAGE_DTYPES), *(Global("torch", n) for n in _DTYPES)]
)


# --- the machine ------------------------------------------------------------------------------


class _Machine:
    """The stack, the marks, the memo, and a place in the pickle's bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self.place + count
        if end > len(self.data):
            raise _Refused("truncated")
        taken, self.place = self.data[self.place : end], end
        return taken

    def number(self, form: str) -> Any:
        """The next bytes as a number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """The text up to the next line's end."""
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise _Refused("truncated")
        text = self.take(end - self.place).decode("utf-8")
        self.place += 1
        return text

    def text(self, length_form: str) -> str:
        """A text behind its length."""
        return self.take(self.number(length_form)).decode("utf-8", "surrogatepass")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise _Refused("takes a value where there is none")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The value on top, which an opcode fills."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise _Refused("fills something that is no list or dictionary")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """The values since the last mark."""
        if not self.outer:
            raise _Refused("takes values up to a mark where there is none")
        values, self.stack = self.stack, self.outer.pop()
        return values

    def remember(self, index: int) -> None:
        if not self.stack:
            raise _Refused("remembers a value where there is none")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise _Refused("recalls a value that it never had")
        self.push(self.memo[index])


def _global(machine: _Machine, module: Any, name: Any) -> None:
    found = Global(module, name) if isinstance(module, str) and isinstance(name, str) else None
    if found not in _NAMES:
        full = f"{module}.{name}"[:200]
        shown = full if full.isprintable() else ascii(full)
        raise _Refused(f"refers to {shown}, which is not read: only tensors and plain values are")
    machine.push(found)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise _Refused("a global whose name is no text")
    _global(machine, module, name)


def _reduce(machine: _Machine) -> None:
    args, function = machine.pop(), machine.pop()
    call = _CALLS.get(function) if isinstance(function, Global) else None
    if call is None or not isinstance(args, tuple):
        raise _Refused("calls something that is no function of the list")
    machine.push(call(*args))


def _build(machine: _Machine) -> None:
    # The attributes of an OrderedDict, as a module's state has its _metadata.
    machine.pop()
    machine.top(Pairs)


def _persistent(machine: _Machine) -> None:
    reference = machine.pop()
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise _Refused("a reference to something else than a storage")
    _, kind, key, _, count = reference
    if not isinstance(kind, Global) or not isinstance(key, str) or not _is_sizes((count,)):
        raise _Refused("a storage of other arguments than PyTorch's")
    if kind == _UNTYPED:
        machine.push(Storage(key, "uint8", count))
    elif kind.module == "torch" and kind.name in STORAGE_DTYPES:
        machine.push(Storage(key, STORAGE_DTYPES[kind.name], count))
    else:
        raise _Refused(f"a storage of kind {kind}")


def _append(machine: _Machine, values: list[Any]) -> None:
    machine.top(list).extend(values)


def _set_items(machine: _Machine, values: list[Any], target: Pairs | None = None) -> None:
    if len(values) % 2:
        raise _Refused("a dictionary's key without a value")
    pairs = machine.top(Pairs) if target is None else target
    pairs.items.extend(zip(values[::2], values[1::2]))


def _dict(machine: _Machine) -> None:
    pairs = Pairs()
    _set_items(machine, machine.pop_to_mark(), pairs)
    machine.push(pairs)


def _tuple(machine: _Machine, count: int) -> None:
    machine.push(tuple(reversed([machine.pop() for _ in range(count)])))


def _mark(machine: _Machine) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_to_mark()


def _long(machine: _Machine, form: str) -> None:
    length = machine.number(form)
    if length > 16:
        raise _Refused(f"an integer of {length} bytes")
    machine.push(int.from_bytes(machine.take(length), "little", signed=True))


def _skip(machine: _Machine, form: str) -> None:
    machine.take(machine.number(form))
    machine.push(Opaque())


def _protocol(machine: _Machine) -> None:
    if machine.number("<B") > 5:
        raise _Refused("a pickle of a later protocol than 5")


_OPCODES: dict[int, Callable[[_Machine], Any]] = {
    0x80: _protocol,  # PROTO
    0x95: lambda m: m.number("<Q"),  # FRAME
    ord("("): _mark,  # MARK
    ord("0"): _pop,  # POP
    ord("1"): lambda m: m.pop_to_mark(),  # POP_MARK
    ord("N"): lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x89: lambda m: m.push(False),  # NEWFALSE
    ord("J"): lambda m: m.push(m.number("<i")),  # BININT
    ord("K"): lambda m: m.push(m.number("<B")),  # BININT1
    ord("M"): lambda m: m.push(m.number("<H")),  # BININT2
    0x8A: lambda m: _long(m, "<B"),  # LONG1
    0x8B: lambda m: _long(m, "<I"),  # LONG4
    ord("G"): lambda m: m.push(m.number(">d")),  # BINFLOAT
    ord("X"): lambda m: m.push(m.text("<I")),  # BINUNICODE
    0x8C: lambda m: m.push(m.text("<B")),  # SHORT_BINUNICODE
    0x8D: lambda m: m.push(m.text("<Q")),  # BINUNICODE8
    ord("U"): lambda m: _skip(m, "<B"),  # SHORT_BINSTRING
    ord("T"): lambda m: _skip(m, "<I"),  # BINSTRING
    ord("C"): lambda m: _skip(m, "<B"),  # SHORT_BINBYTES
    ord("B"): lambda m: _skip(m, "<I"),  # BINBYTES
    0x8E: lambda m: _skip(m, "<Q"),  # BINBYTES8
    0x96: lambda m: _skip(m, "<Q"),  # BYTEARRAY8
    ord(")"): lambda m: m.push(()),  # EMPTY_TUPLE
    0x85: lambda m: _tuple(m, 1),  # TUPLE1
    0x86: lambda m: _tuple(m, 2),  # TUPLE2
    0x87: lambda m: _tuple(m, 3),  # TUPLE3
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),  # TUPLE
    ord("]"): lambda m: m.push([]),  # EMPTY_LIST
    ord("l"): lambda m: m.push(m.pop_to_mark()),  # LIST
    ord("a"): lambda m: _append(m, [m.pop()]),  # APPEND
    ord("e"): lambda m: _append(m, m.pop_to_mark()),  # APPENDS
    ord("}"): lambda m: m.push(Pairs()),  # EMPTY_DICT
    ord("d"): _dict,  # DICT
    ord("s"): lambda m: _set_items(m, [m.pop(), m.pop()][::-1]),  # SETITEM
    ord("u"): lambda m: _set_items(m, m.pop_to_mark()),  # SETITEMS
    ord("q"): lambda m: m.remember(m.number("<B")),  # BINPUT
    ord("r"): lambda m: m.remember(m.number("<I")),  # LONG_BINPUT
    0x94: lambda m: m.remember(len(m.memo)),  # MEMOIZE
    ord("h"): lambda m: m.recall(m.number("<B")),  # BINGET
    ord("j"): lambda m: m.recall(m.number("<I")),  # LONG_BINGET
    ord("c"): lambda m: _global(m, m.line(), m.line()),  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    ord("R"): _reduce,  # REDUCE
    ord("b"): _build,  # BUILD
    ord("Q"): _persistent,  # BINPERSID
}
_STOP = ord(".")


def interpret(data: bytes, source: str) -> Any:
    """What a checkpoint's pickle describes: ``Pairs``, lists, tuples, numbers, texts, ``TensorRecord`` …

    Takes time and memory in proportion to ``data``. Raises ``PthError`` for anything that is not on the lists above.
    """
    machine = _Machine(data)
    while True:
        start = machine.place
        try:
            code = machine.take(1)[0]
            if code == _STOP:
                value = machine.pop()
                if machine.stack or machine.outer:
                    raise _Refused("ends with values left over")
                return value
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise _Refused(f"opcode {bytes([code])!r}, which checkpoints of tensors do not have")
            opcode(machine)
        except _Refused as error:
            raise PthError(source, f"its pickle, at byte {start}: {error}") from error
        except UnicodeDecodeError as error:
            raise PthError(source, f"its pickle, at byte {start}: a text that is none") from error
