"""Checkpoints made to do harm: nothing in them runs, and none grows beyond what the file holds."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import PthError
from metal_candle.formats.pth_pickle import interpret
from metal_candle.pickle import PthTensors, read_all

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

STOP = b"."


def checkpoint(path: Path, description: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", description)
        for key, data in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"x/data/{key}", data)
    return path


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + data


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count: int = 4, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    )


def tensor(shape: bytes = numbers(4), stride: bytes = numbers(1), offset: int = 0, held: bytes | None = None) -> bytes:
    start = b"ctorch._utils\n_rebuild_tensor_v2\n(" + (storage() if held is None else held) + number(offset)
    return start + shape + stride + b"\x89}tR"


def dictionary(**values: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in values.items()) + b"u."


def test_the_parts_make_a_checkpoint(tmp_path: Path) -> None:
    """The hostile ones below differ from a good one in one thing each."""
    path = checkpoint(tmp_path / "a.pth", dictionary(w=tensor()), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert [(name, read.tolist()) for name, read in read_all(path)] == [("w", [1.0, 2.0, 3.0, 4.0])]


# --- running something ------------------------------------------------------------------------


class Calls:
    """Pickles as a call of ``function`` with these arguments."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Restored:
    """Pickles as an object with a state, which Python's unpickler would give to ``__setstate__``."""

    def __setstate__(self, state: Any) -> None:
        Path(state["path"]).touch()


def restored(canary: str) -> Any:
    value = Restored()
    value.path = canary  # type: ignore[attr-defined]
    return value


HARM: dict[str, Callable[[str], Any]] = {
    "os.system": lambda canary: Calls(__import__("os").system, f"touch {canary}"),
    "eval": lambda canary: Calls(eval, f"open({canary!r}, 'w')"),
    "exec": lambda canary: Calls(exec, f"open({canary!r}, 'w')"),
    "open": lambda canary: Calls(open, canary, "w"),
    "subprocess": lambda canary: Calls(subprocess.call, ["touch", canary]),
    "getattr": lambda canary: Calls(getattr, Path(canary), "touch"),
    "path": lambda canary: Path(canary),
    "state": restored,
    "nested": lambda canary: {"a": [(OrderedDict(b=Calls(exec, f"open({canary!r}, 'w')")),)]},
    "key": lambda canary: {Calls(eval, f"open({canary!r}, 'w')"): 1},
    "import": lambda canary: Calls(__import__, "antigravity"),
    "type": lambda canary: Calls(type, "x", (), {}),
}


def test_python_would_run_them(tmp_path: Path) -> None:
    """The test below can fail: its pickles do what they say."""
    for harm in ("os.system", "subprocess", "state"):
        pickle.loads(pickle.dumps(HARM[harm](str(tmp_path / harm))))
        assert (tmp_path / harm).exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("harm", HARM)
def test_nothing_of_a_hostile_pickle_runs(tmp_path: Path, harm: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    try:
        description = pickle.dumps({"w": HARM[harm](str(canary))}, protocol)
    except TypeError:  # a key that older protocols cannot hash
        pytest.skip("cannot be pickled so")
    if canary.exists():
        canary.unlink()
    before = set(sys.modules)
    with pytest.raises(PthError, match=r"a\.pth: its pickle, at byte \d+: (refers to|opcode)"):
        read_all(checkpoint(tmp_path / "a.pth", description))
    assert not canary.exists()
    assert set(sys.modules) - before <= {"encodings.unicode_escape"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os\nsystem", r"refers to os\.system, which is not read"),
        ("posix\nsystem", r"refers to posix\.system"),
        ("builtins\neval", r"refers to builtins\.eval"),
        ("__builtin__\neval", r"refers to __builtin__\.eval"),
        ("torch\nload", r"refers to torch\.load"),
        ("torch._utils\n_rebuild_tensor_v2.__globals__", r"refers to torch\._utils\._rebuild_tensor_v2\.__globals__"),
        ("torch.hub\nload", r"refers to torch\.hub\.load"),
        ("torch.serialization\nload", r"refers to torch\.serialization\.load"),
        ("metal_candle.formats.pth\nReader", "refers to metal_candle"),
        ("a\x07\nb", r"refers to 'a\\x07\.b'"),
    ],
)
def test_globals_off_the_list_are_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(PthError, match=message) as raised:
        read_all(checkpoint(tmp_path / "a.pth", b"\x80\x02c" + name.encode() + b"\n."))
    assert "\n" not in str(raised.value)
    module, _, attribute = name.partition("\n")
    with pytest.raises(PthError, match=message):
        read_all(checkpoint(tmp_path / "b.pth", b"\x80\x04" + text(module) + text(attribute) + b"\x93."))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        # Calls of what only stands for itself, and of what is no function at all.
        (b"ctorch\nFloatStorage\n)R.", "calls something that is no function of the list"),
        (b"ctorch\nfloat32\n)R.", "calls something that is no function"),
        (text("os.system") + text("true") + b"\x85R.", "calls something that is no function"),
        (tensor() + b")R.", "calls something that is no function"),
        (b"ccollections\nOrderedDict\n]R.", "calls something that is no function"),
        (b"ccollections\nOrderedDict\n(]tR.", "an OrderedDict made of arguments"),
        # States for what has none: __setstate__, __dict__ and slots are out of reach.
        (tensor() + b"}b.", "fills something that is no list or dictionary"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"Nsb.", "fills something"),
        (b"ctorch\nSize\n)R}b.", "fills something"),
        (b"ctorch\nfloat32\n(N}tb.", "fills something"),
        (b"N}b.", "fills something"),
        # The opcodes that make objects by other ways.
        (b"ccollections\nOrderedDict\n)\x81.", r"opcode b'\\x81', which checkpoints of tensors do not have"),
        (b"ccollections\nOrderedDict\n)}\x92.", r"opcode b'\\x92'"),
        (b"(ccollections\nOrderedDict\no.", "opcode b'o'"),
        (b"(icollections\nOrderedDict\n.", "opcode b'i'"),
        (b"\x82\x01.", r"opcode b'\\x82'"),
        (b"Pstorage\n.", "opcode b'P'"),
        (b"S'os'\n.", "opcode b'S'"),
        (b"\x98.", r"opcode b'\\x98'"),
        # References to other things than storages.
        (text("os.system") + b"Q.", "a reference to something else than a storage"),
        (numbers(1, 2, 3, 4, 5) + b"Q.", "a reference to something else than a storage"),
        (b"(" + text("module") + b"NNNNtQ.", "a reference to something else"),
        (b"(" + text("storage") + b"ccollections\nOrderedDict\n" + text("0") + text("cpu") + b"K\1tQ.", "of kind"),
        (
            b"(" + text("storage") + b"ctorch\nFloatStorage\nK\0" + text("cpu") + b"K\1tQ.",
            "a storage of other arguments",
        ),
        # A machine out of step.
        (b"", "truncated"),
        (b"N", "truncated"),
        (b".", "takes a value where there is none"),
        (b"NN.", "ends with values left over"),
        (b"(N.", "ends with values left over"),
        (b"t.", "up to a mark where there is none"),
        (b"0.", "up to a mark where there is none"),
        (b"h\0.", "recalls a value that it never had"),
        (b"q\0N.", "remembers a value where there is none"),
        (b"}(Nu.", "key without a value"),
        (b"NNa.", "fills something that is no list"),
        (b"\x80\x06.", "a later protocol than 5"),
        (b"X\xff\xff\xff\xff.", "truncated"),
        (b"\x8d" + b"\xff" * 8 + b".", "truncated"),
        (b"\x8b\xff\xff\xff\xff.", "an integer of 4294967295 bytes"),
        (b"X\1\0\0\0\xff.", "a text that is none"),
        (b"cos", "truncated"),
        (b"c\xff\nx\n.", "a text that is none"),
        (b"NN\x93.", "a global whose name is no text"),
    ],
)
def test_pickles_that_no_checkpoint_has(tmp_path: Path, description: bytes, message: str) -> None:
    with pytest.raises(PthError, match=message):
        read_all(checkpoint(tmp_path / "a.pth", description))


# --- growing ----------------------------------------------------------------------------------


def test_deep_nesting_is_refused_quickly(tmp_path: Path) -> None:
    depth = 200_000
    for description in (b"]" * depth + b"a" * (depth - 1), b")" + b"\x85" * depth, b"}" + text("a") * 0 + deep(depth)):
        with pytest.raises(PthError, match="nested deeper than 64, or hold themselves"):
            read_all(checkpoint(tmp_path / "a.pth", b"\x80\x02" + description + STOP))


def deep(depth: int) -> bytes:
    return b"".join([b"K\0}"] * depth) + b"s" * depth


def test_values_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    for description in (b"]q\0h\0a.", b"}q\0K\1h\0s.", b"]q\0(h\0h\0h\0e."):
        with pytest.raises(PthError, match="hold themselves"):
            read_all(checkpoint(tmp_path / "a.pth", description))


@pytest.mark.parametrize("end", [b"]", b"K\1", tensor()])
def test_a_memo_bomb_is_refused(tmp_path: Path, end: bytes) -> None:
    """Each level names the one below ten times: 10^40 values in a few hundred bytes."""
    levels = b"".join(b"q" + bytes([i]) + b"0(" + (b"h" + bytes([i])) * 10 + b"l" for i in range(40))
    with pytest.raises(PthError, match=r"names the same values again and again|two tensors|nested deeper"):
        read_all(checkpoint(tmp_path / "a.pth", b"\x80\x02" + end + levels + STOP))


def test_a_bomb_of_names_is_refused(tmp_path: Path) -> None:
    wide = b"(" + b"N" * 1000 + b"lq\0" + b"0(" + b"h\0" * 100_000 + b"l."
    with pytest.raises(PthError, match="names the same values again and again"):
        read_all(checkpoint(tmp_path / "a.pth", b"\x80\x02" + wide))


def test_a_dictionary_named_twice_has_its_tensors_twice(tmp_path: Path) -> None:
    inner = b"}q\0" + text("w") + tensor() + b"s"
    path = checkpoint(tmp_path / "a.pth", dictionary(model=inner, ema=b"h\0"))
    assert [name for name, _ in read_all(path)] == ["model.w", "ema.w"]


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    nested = {"a.b": tensor(), "a": b"}" + text("b") + tensor() + b"s"}
    with pytest.raises(PthError, match=r"two tensors have the name a\.b"):
        read_all(checkpoint(tmp_path / "a.pth", dictionary(**nested)))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (tensor(numbers(5)), "tensor w needs 5 elements, its storage has 4"),
        (tensor(numbers(4), offset=1), "tensor w needs 5 elements"),
        (tensor(numbers(2), numbers(4)), "tensor w needs 5 elements"),
        (tensor(numbers(2), numbers(2**62)), "its storage has 4"),
        (tensor(numbers(1), numbers(1), 2**62), "its storage has 4"),
        (tensor(numbers(10**9), numbers(0)), "repeats 4 elements too often"),
        (tensor(numbers(*[2**20] * 30), numbers(*[0] * 30)), "repeats 4 elements too often"),
        (tensor(numbers(2**31), numbers(0)), r"takes sizes below 2\^31"),
        (tensor(numbers(0, 2**31), numbers(1, 1)), r"takes sizes below 2\^31"),
        (tensor(held=storage(key="../../x")), r"the storage x/data/\.\./\.\./x is not there"),
        (tensor(held=storage(kind="CharStorage")), "tensor w is int8"),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path: Path, description: bytes, message: str) -> None:
    opened = PthTensors.new(checkpoint(tmp_path / "a.pth", dictionary(w=description)))
    with pytest.raises(PthError, match=message):
        opened.get("w")
    with pytest.raises(PthError, match=message):
        read_all(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "description",
    [
        tensor(numbers(-1)),
        tensor(numbers(2**64)),
        tensor(numbers(4), numbers(-1)),
        tensor(numbers(4), numbers(1), -1),
        tensor(numbers(4), numbers(1, 1)),
        tensor(b"K\4"),
        tensor(b"(\x88t"),
        tensor(numbers(*[1] * 65), numbers(*[1] * 65)),
        tensor(held=b"N"),
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ctorch._utils\n_rebuild_tensor_v3\n" + b"(" + b"N" * 7 + b"tR",
        b"ctorch._utils\n_rebuild_parameter\n(NNNtR",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"K\0" + numbers(4) + numbers(1) + b"\x89}}K\1K\1stR",
    ],
)
def test_tensors_of_other_arguments_are_refused(tmp_path: Path, description: bytes) -> None:
    with pytest.raises(PthError, match="its pickle, at byte"):
        read_all(checkpoint(tmp_path / "a.pth", dictionary(w=description)))


def test_strides_of_single_elements_do_not_matter(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth", dictionary(w=tensor(numbers(1, 4, 1), numbers(2**62, 1, 2**62))))
    assert read_all(path)[0][1].dims() == [1, 4, 1]


def test_a_description_larger_than_it_can_be_is_not_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"N" * 110_000_000)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    with pytest.raises(PthError, match="claims a description of 110000000 bytes"):
        read_all(tmp_path / "a.pth")


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


@settings(max_examples=500, deadline=None)
@given(some.lists(some.sampled_from(OPCODES) | some.binary(max_size=3) | some.sampled_from([tensor(), text("a")])))
def test_any_opcodes_give_plain_values_or_errors_of_ours(parts: list[bytes]) -> None:
    try:
        interpret(b"".join(parts), "a")
    except PthError:
        return


@settings(max_examples=500, deadline=None)
@given(some.data())
def test_flipped_descriptions_give_plain_values_or_errors_of_ours(data: some.DataObject) -> None:
    whole = bytearray(dictionary(a=tensor(), b=b"}" + text("c") + tensor(numbers(2, 2), numbers(2, 1)) + b"s"))
    for place in data.draw(some.lists(some.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(some.integers(0, 255))
    try:
        interpret(bytes(whole), "a")
    except PthError:
        return
