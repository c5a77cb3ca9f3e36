"""Checkpoints made to do harm: none grows beyond what the file holds, and damage gives errors of ours."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

from metal_candle.error import PthError
from metal_candle.formats import pth
from metal_candle.formats.pth_pickle import interpret
from metal_candle.pickle import PthTensors, read_all

import pytest
from hostile_pth import STOP, assert_inert, checkpoint, dictionary, number, numbers, storage, tensor, text
from hypothesis import given, settings
from hypothesis import strategies as some


def test_the_parts_make_a_checkpoint(tmp_path: Path) -> None:
    """The hostile ones below differ from a good one in one thing each."""
    path = checkpoint(tmp_path / "a.pth", dictionary(w=tensor()), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert [(name, read.tolist()) for name, read in read_all(path)] == [("w", [1.0, 2.0, 3.0, 4.0])]


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


def deflated(path: Path, description: bytes, storage: bytes = bytes(16)) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", description)
        archive.writestr("x/data/0", storage)
    return path


def test_a_description_that_is_packed_too_well_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 kB that would become 20 million lists."""
    monkeypatch.setattr(pth, "interpret", lambda *_: pytest.fail("was unpacked"))
    with pytest.raises(PthError, match="a description of 20000000 bytes, or one that is packed too well; store it"):
        read_all(deflated(tmp_path / "a.pth", b"]" * 20_000_000))


def test_a_storage_that_is_packed_too_well_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pth, "REPEAT_LIMIT", 1000)
    path = deflated(tmp_path / "a.pth", dictionary(w=tensor()), bytes(4_000_000))
    with pytest.raises(PthError, match="its storage of 1000000 elements is packed too well"):
        PthTensors.new(path).get("w")
    with pytest.raises(PthError, match="packed too well"):
        read_all(path)


def test_a_long_key_above_many_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tensor() + b"q\0" + b"0}(" + b"".join(number(index) + b"h\0" for index in range(5000)) + b"u"
    path = checkpoint(tmp_path / "a.pth", b"\x80\x02}" + text("k" * 500_000) + inner + b"s.")
    with pytest.raises(PthError, match="a tensor's name has 500002 characters; takes up to 4096"):
        read_all(path)
    path = checkpoint(tmp_path / "b.pth", b"\x80\x02}" + text("k" * 4000) + inner + b"s.")
    assert len(PthTensors.new(path).tensor_infos()) == 5000
    monkeypatch.setattr(pth, "NAMES_LIMIT", 1_000_000)
    with pytest.raises(PthError, match="the tensors' names have more than 1000000 characters"):
        PthTensors.new(path)


def test_a_tensor_named_many_times_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    array_of = pth.from_bytes

    def counted(*args: Any) -> Any:
        made.append(args)
        return array_of(*args)

    monkeypatch.setattr(pth, "from_bytes", counted)
    wide = tensor(numbers(1 << 22), numbers(0)) + b"q\0" + b"0](" + b"h\0" * 2000 + b"e."
    read = read_all(checkpoint(tmp_path / "a.pth", b"\x80\x02" + wide))
    assert (len(read), len(made), read[-1][0], read[-1][1].dims()) == (2000, 1, "1999", [1 << 22])


def test_views_of_one_storage_are_bounded_in_all(tmp_path: Path) -> None:
    """2000 tensors of 4 million repeated elements each, every one another view: 33 GB out of 200 kB."""
    views = b"".join(tensor(numbers(1 << 22, 1), numbers(0, index)) for index in range(2000))
    path = checkpoint(tmp_path / "a.pth", b"\x80\x02](" + views + b"e.")
    with pytest.raises(PthError, match="its tensors have 8388608000 elements, of 4 in its storages"):
        read_all(path)
    one = PthTensors.new(path).get("7")
    assert one is not None
    assert one.dims() == [1 << 22, 1]


def test_a_tuple_of_tuples_as_a_key_has_a_short_name(tmp_path: Path) -> None:
    """Each level names the one below ten times: shown whole, it would have 10^40 characters, and as many hashes."""
    levels = b"".join(b"q" + bytes([i]) + b"0(" + (b"h" + bytes([i])) * 10 + b"t" for i in range(40))
    for key in (b"K\1" + levels, b")" + b"\x85" * 100_000):
        read = read_all(checkpoint(tmp_path / "a.pth", b"\x80\x02}" + key + tensor() + b"s."))
        assert len(read[0][0]) == 201
        assert read[0][0].startswith("(((")


# --- values without content -------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"ctorch\nSize\n)R}b",
        b"cargparse\nNamespace\n)\x81}" + text("a") + tensor() + b"sb",
        b"cargparse\nNamespace\n)}\x92",
        b"ccollections\nCounter\n}\x85R",
        b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R(K\3NNtbC\1x\x86R",
        b"cpathlib\nPosixPath\n" + text("/") + b"\x85R",
        b"ctorch\nnever_mind".replace(b"never_mind", b"device\n") + text("cpu") + b"\x85R",
        b"c__builtin__\nlist\n)R(NNe",
        b"c__builtin__\ndict\n)R(NNu",
        b"\x8f(K\1\x90",
        b"(K\1\x91",
        b"ctyping\nAny\n",
    ],
)
def test_values_of_known_classes_are_passed_over(tmp_path: Path, value: bytes) -> None:
    path = checkpoint(tmp_path / "a.pth", dictionary(a=value, w=tensor()))
    assert [name for name, _ in read_all(path)] == ["w"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"ctorch._utils\n_rebuild_sparse_tensor\n(" + tensor() + b"tR", r"_rebuild_sparse_tensor, which is not read"),
        (b"ctorch.nn.modules.linear\nLinear\n)\x81}b", r"is a module, torch\.nn\.modules\.linear\.Linear, which"),
        (
            b"ctorch._utils\n_rebuild_parameter\n(ctorch._utils\n_rebuild_qtensor\n)R\x88}tR",
            r"is made by torch\._utils\._rebuild_qtensor",
        ),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch.masked\nMaskedTensor\n)}tR",
            r"is made by torch\.masked\.MaskedTensor",
        ),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(]ctorch\nTensor\n)}tR",
            r"is made by torch\.Tensor",
        ),
    ],
)
def test_tensors_made_in_other_ways_are_errors_of_their_own(tmp_path: Path, value: bytes, message: str) -> None:
    opened = PthTensors.new(checkpoint(tmp_path / "a.pth", dictionary(a=value, w=tensor())))
    assert opened.get("w") is not None
    with pytest.raises(PthError, match=f"tensor a {message}" if message.startswith("is") else message):
        opened.get("a")
    with pytest.raises(PthError, match="which is not read"):
        read_all(tmp_path / "a.pth")


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


@settings(max_examples=500, deadline=None)
@given(some.lists(some.sampled_from(OPCODES) | some.binary(max_size=3) | some.sampled_from([tensor(), text("a")])))
def test_any_opcodes_give_plain_values_or_errors_of_ours(parts: list[bytes]) -> None:
    try:
        value = interpret(b"".join(parts), "a")
    except PthError:
        return
    assert_inert(value)


@settings(max_examples=500, deadline=None)
@given(some.data())
def test_flipped_descriptions_give_plain_values_or_errors_of_ours(data: some.DataObject) -> None:
    whole = bytearray(dictionary(a=tensor(), b=b"}" + text("c") + tensor(numbers(2, 2), numbers(2, 1)) + b"s"))
    for place in data.draw(some.lists(some.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(some.integers(0, 255))
    try:
        value = interpret(bytes(whole), "a")
    except PthError:
        return
    assert_inert(value)
