"""The pickle inside a PyTorch checkpoint, interpreted without Python's unpickler: nothing in it is ever called.

The opcodes build plain data. A global is only a name: on the short list of ``pth_records``, whose functions make the
records of tensors, or on that of ``pth_names``, whose "calls" make a value without content. Everything else is refused
with its name.

Opcodes: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ..error import PthError
from ..error.text import shown
from .pth_names import is_inert, makes_tensor
from .pth_records import (
    CALLS,
    NAMES,
    STORAGE_DTYPES,
    UNTYPED,
    Global,
    Opaque,
    Pairs,
    Refused,
    Storage,
    Unread,
    is_sizes,
)

_INTEGER_LIMIT = 255  # bytes; larger ones take long to be shown


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
            raise Refused("truncated")
        taken, self.place = self.data[self.place : end], end
        return taken

    def number(self, form: str) -> Any:
        """The next bytes as a number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """The text up to the next line's end."""
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise Refused("truncated")
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
            raise Refused("takes a value where there is none")
        return self.stack.pop()

    def top(self, *kinds: type) -> Any:
        """The value on top, which an opcode fills; into one without content nothing goes."""
        if not self.stack or not isinstance(self.stack[-1], (Opaque, Unread, *kinds)):
            raise Refused("fills something that is no list or dictionary")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """The values since the last mark."""
        if not self.outer:
            raise Refused("takes values up to a mark where there is none")
        values, self.stack = self.stack, self.outer.pop()
        return values

    def remember(self, index: int) -> None:
        if not self.stack:
            raise Refused("remembers a value where there is none")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Refused("recalls a value that it never had")
        self.push(self.memo[index])


def _global(machine: _Machine, module: str, name: str) -> None:
    found = Global(module, name)
    if found in NAMES:
        machine.push(found)
    elif is_inert(module, name):
        machine.push(Opaque(found))
    else:
        raise Refused(f"refers to {shown(found, 200)}, which is not read: only tensors and plain values are")


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Refused("a global whose name is no text")
    _global(machine, module, name)


def _reduce(machine: _Machine) -> None:
    args, function = machine.pop(), machine.pop()
    if isinstance(function, Opaque) and isinstance(args, tuple):
        machine.push(_without_content(function))
        return
    call = CALLS.get(function) if isinstance(function, Global) else None
    if call is None or not isinstance(args, tuple):
        raise Refused("calls something that is no function of the list")
    machine.push(call(*args))


def _without_content(made_by: Opaque) -> Opaque | Unread:
    """What stands for the result of calling something that is never called."""
    name = made_by.made_by
    return Unread(name) if name is not None and makes_tensor(*name) else Opaque(name)


def _new_object(machine: _Machine, argument_count: int) -> None:
    for _ in range(argument_count):
        machine.pop()
    kind = machine.pop()
    if not isinstance(kind, Opaque):
        raise Refused("makes an object of something that is no class of the list")
    machine.push(_without_content(kind))


def _build(machine: _Machine) -> None:
    # The attributes of an OrderedDict, as a module's state has its _metadata, and the state of other objects.
    machine.pop()
    machine.top(Pairs)


def _persistent(machine: _Machine) -> None:
    reference = machine.pop()
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise Refused("a reference to something else than a storage")
    _, kind, key, _, count = reference
    if not isinstance(kind, Global) or not isinstance(key, str) or not is_sizes((count,)):
        raise Refused("a storage of other arguments than PyTorch's")
    if kind == UNTYPED:
        machine.push(Storage(key, "uint8", count))
    elif kind.module == "torch" and kind.name in STORAGE_DTYPES:
        machine.push(Storage(key, STORAGE_DTYPES[kind.name], count))
    else:
        raise Refused(f"a storage of kind {kind}")


def _append(machine: _Machine, values: list[Any]) -> None:
    target = machine.top(list)
    if isinstance(target, list):
        target.extend(values)


def _set_items(machine: _Machine, values: list[Any], target: Pairs | None = None) -> None:
    if len(values) % 2:
        raise Refused("a dictionary's key without a value")
    pairs = machine.top(Pairs) if target is None else target
    if isinstance(pairs, Pairs):
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
    if length > _INTEGER_LIMIT:
        raise Refused(f"an integer of {length} bytes")
    machine.push(int.from_bytes(machine.take(length), "little", signed=True))


def _set(machine: _Machine) -> None:
    machine.pop_to_mark()
    machine.push(Opaque())


def _add_items(machine: _Machine) -> None:
    machine.pop_to_mark()
    machine.top()


def _protocol(machine: _Machine) -> None:
    if machine.number("<B") > 5:
        raise Refused("a pickle of a later protocol than 5")


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
    ord("U"): lambda m: m.push(m.take(m.number("<B"))),  # SHORT_BINSTRING
    ord("T"): lambda m: m.push(m.take(m.number("<I"))),  # BINSTRING
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),  # SHORT_BINBYTES
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),  # BINBYTES
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),  # BINBYTES8
    0x96: lambda m: m.push(m.take(m.number("<Q"))),  # BYTEARRAY8
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
    0x8F: lambda m: m.push(Opaque()),  # EMPTY_SET
    0x90: _add_items,  # ADDITEMS
    0x91: _set,  # FROZENSET
    ord("q"): lambda m: m.remember(m.number("<B")),  # BINPUT
    ord("r"): lambda m: m.remember(m.number("<I")),  # LONG_BINPUT
    0x94: lambda m: m.remember(len(m.memo)),  # MEMOIZE
    ord("h"): lambda m: m.recall(m.number("<B")),  # BINGET
    ord("j"): lambda m: m.recall(m.number("<I")),  # LONG_BINGET
    ord("c"): lambda m: _global(m, m.line(), m.line()),  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    ord("R"): _reduce,  # REDUCE
    0x81: lambda m: _new_object(m, 1),  # NEWOBJ
    0x92: lambda m: _new_object(m, 2),  # NEWOBJ_EX
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
                    raise Refused("ends with values left over")
                return value
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise Refused(f"opcode {bytes([code])!r}, which checkpoints of tensors do not have")
            opcode(machine)
        except Refused as error:
            raise PthError(source, f"its pickle, at byte {start}: {error}") from error
        except UnicodeDecodeError as error:
            raise PthError(source, f"its pickle, at byte {start}: a text that is none") from error
