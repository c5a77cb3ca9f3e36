"""npy and npz: NumPy reads what is written and the other way round; damaged and hostile files are refused."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from metal_candle import DType, Error, LazyTensor, Tensor, Var
from metal_candle.error import CheckpointError, IoError, NotFoundError, NpyError
from metal_candle.formats import npy
from metal_candle.npy import NpzTensors

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

DTYPES = ["float16", "float32", "float64", "int16", "int32", "int64", "uint8", "uint32"]
ANY_ARRAY = some.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), version)
    return buffer.getvalue()


def with_header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    form = "<H" if version == 1 else "<I"
    return npy.MAGIC + bytes([version, 0]) + struct.pack(form, len(text.encode())) + text.encode() + data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def same(tensor: Any, array: Any) -> bool:
    """Equal shape, dtype and bits."""
    value = np.array(tensor.mlx())
    return value.shape == array.shape and value.dtype == array.dtype and value.tobytes() == array.tobytes()


# --- npy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Tensor, LazyTensor, Var])
@settings(max_examples=40, deadline=None)
@given(array=ANY_ARRAY, version=some.sampled_from([None, (1, 0), (2, 0), (3, 0)]))
def test_both_ways(tmp_path_factory: pytest.TempPathFactory, kind: Any, array: Any, version: Any) -> None:
    folder = tmp_path_factory.mktemp("npy")
    read = kind.read_npy(write(folder / "a.npy", saved(array, version)))
    assert type(read) is kind
    assert read.device.is_cpu()
    assert same(read, array)
    read.write_npy(folder / "b.npy")
    again = np.load(folder / "b.npy", allow_pickle=False)
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert (folder / "b.npy").read_bytes() == saved(array)


def test_strided_tensors_are_written_in_order(tmp_path: Path) -> None:
    tensor = Tensor(np.arange(24, dtype=np.float32).reshape(4, 6))
    for part in (tensor.t(), tensor.narrow(1, 2, 3), tensor.get(1).broadcast_left(2)):
        part.write_npy(tmp_path / "a.npy")
        assert np.load(tmp_path / "a.npy").tolist() == part.tolist()


def test_booleans_become_u8(tmp_path: Path) -> None:
    read = Tensor.read_npy(write(tmp_path / "a", saved(np.array([True, False]))))
    assert (read.dtype, read.tolist()) == (DType.U8, [1, 0])


def test_long_headers_take_version_2() -> None:
    array = mx.zeros((1,) * 30_000)
    header = npy.encode_header(array, "a")
    assert header[6:8] == b"\2\0"
    assert len(header) % 64 == 0
    assert npy.parse(header + bytes(4), "a").shape == array.shape


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(2, "i1"), r"holds \|i1; takes f2, f4"),
        (np.zeros(2, "u2"), "holds <u2"),
        (np.zeros(2, "u8"), "holds <u8"),
        (np.zeros(2, "c8"), "holds <c8"),
        (np.zeros(2, "U3"), "holds <U3"),
        (np.zeros(2, "M8[s]"), r"holds <M8\[s\]"),
        (np.zeros(2, ">f4"), "holds big-endian numbers, >f4"),
        (np.zeros((2, 3), order="F"), "is in Fortran order; save numpy.ascontiguousarray"),
        (np.zeros(2, [("a", "f4")]), "takes no records"),
    ],
)
def test_what_tensors_do_not_have_is_refused(tmp_path: Path, array: Any, message: str) -> None:
    with pytest.raises(NpyError, match=message) as raised:
        Tensor.read_npy(write(tmp_path / "a.npy", saved(array)))
    assert isinstance(raised.value, ValueError)
    assert str(raised.value).startswith(f"{tmp_path / 'a.npy'}: ")


def test_objects_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Touch:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {canary}",)

    np.save(tmp_path / "a.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    with pytest.raises(NpyError, match=r"holds \|O"):
        Tensor.read_npy(tmp_path / "a.npy")
    assert not canary.exists()


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no npy file: 0 bytes"),
        (b"\x93NUMPX\1\0", "no npy file"),
        (npy.MAGIC + b"\1\0\5", "truncated inside its header at 9 bytes"),
        (npy.MAGIC + b"\4\0" + bytes(9), "npy version 4.0; takes 1.0, 2.0 and 3.0"),
        (npy.MAGIC + b"\2\0" + struct.pack("<I", 2**32 - 1), "claims a header of 4294967295 bytes"),
        (npy.MAGIC + b"\1\0" + struct.pack("<H", 500) + b"{}", "truncated inside its header at 12 bytes"),
        (npy.MAGIC + b"\3\0" + struct.pack("<I", 2) + b"\xff\xff", "the header is not text"),
        (with_header(GOOD, bytes(7)), r"truncated: \d+ bytes, too few for shape \(2,\)"),
        (with_header(GOOD, bytes(9)), "1 bytes follow the last element"),
        (with_header(GOOD.replace("(2,)", "(2147483648, 0)")), "takes sizes below"),
        (with_header(GOOD.replace("(2,)", "(2000000000, 2000000000, 2000000000)")), "too few for shape"),
        (with_header(GOOD.replace("(2,)", "(-2,)"), bytes(8)), "cannot read the header at '-2"),
        (with_header(GOOD.replace("(2,)", "(True,)"), bytes(8)), "no dictionary of descr"),
        (with_header(GOOD.replace("(2,)", "2"), bytes(8)), "of another kind"),
        (with_header(GOOD.replace("False", "0"), bytes(8)), "of another kind"),
        (with_header(GOOD.replace("'<f4'", "None"), bytes(8)), "cannot read the header at .None"),
        (with_header(GOOD.replace("'<f4'", "'|O'"), bytes(8)), r"holds \|O"),
        (with_header(GOOD.replace("'<f4'", "'<f4', 'descr': '<f4'"), bytes(8)), "no dictionary of descr"),
        (with_header(GOOD.replace("'shape': (2,), ", ""), bytes(8)), "the header has descr, fortran_order; takes"),
        (with_header(GOOD.replace("}", "} {}"), bytes(8)), "no dictionary of descr"),
        (with_header("{" * 5000), "no dictionary of descr"),
        (with_header("__import__('os').system('true')"), "cannot read the header at .__import__"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 30 + ",)}"), "cannot read"),
        (with_header(""), "truncated inside its header at 10 bytes"),
        (with_header("  "), "no dictionary of descr"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(NpyError, match=message) as raised:
        Tensor.read_npy(write(tmp_path / "a.npy", data))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", [GOOD.strip(), GOOD.replace("'", '"'), GOOD.replace("2,", "2L"), " " + GOOD])
def test_other_spellings_of_headers(tmp_path: Path, text: str) -> None:
    assert Tensor.read_npy(write(tmp_path / "a.npy", with_header(text, bytes(8)))).tolist() == [0.0, 0.0]


def test_bf16_has_no_npy(tmp_path: Path) -> None:
    tensor = Tensor.zeros(2, DType.BF16)
    with pytest.raises(NpyError, match="cannot hold bfloat16; convert it with to_dtype first"):
        tensor.write_npy(tmp_path / "a.npy")
    with pytest.raises(NpyError, match=r"a\.npz: x: cannot hold bfloat16"):
        Tensor.write_npz([("x", tensor)], tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for read in (Tensor.read_npy, Tensor.read_npz, NpzTensors.new, lambda path: Tensor.read_npz_by_name(path, ["a"])):
        with pytest.raises(NotFoundError, match="absent: no such file"):
            read(tmp_path / "absent")
        with pytest.raises(IoError, match=r"[iI]s a (folder|directory)"):
            read(tmp_path)
        with pytest.raises(NpyError):
            read(write(tmp_path / "empty", b""))


WHOLE = saved(np.arange(6, dtype=np.float32).reshape(2, 3))


@settings(max_examples=300, deadline=None)
@given(some.integers(0, len(WHOLE)), some.lists(some.integers(0, 8 * len(WHOLE) - 1), max_size=4))
def test_damaged_npy_files_give_tensors_or_errors_of_ours(cut: int, flips: list[int]) -> None:
    damaged = flipped(WHOLE, flips)[:cut]
    if not flips and cut < len(WHOLE):
        with pytest.raises(NpyError):
            npy.parse(damaged, "a")
        return
    try:
        assert npy.parse(damaged, "a").nbytes <= len(WHOLE)
    except NpyError:
        return


def flipped(data: bytes, flips: list[int]) -> bytes:
    damaged = bytearray(data)
    for flip in flips:
        damaged[flip // 8] ^= 1 << flip % 8
    return bytes(damaged)


# --- npz --------------------------------------------------------------------------------------


NAMES = some.text(some.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
@settings(max_examples=40, deadline=None)
@given(named=some.lists(some.tuples(NAMES, ANY_ARRAY), max_size=4, unique_by=lambda pair: pair[0]))
def test_npz_both_ways(tmp_path_factory: pytest.TempPathFactory, kind: Any, named: list[tuple[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    kind.write_npz([(name, kind.from_numpy(array)) for name, array in named], path)
    read = kind.read_npz(path)
    assert [name for name, _ in read] == [name for name, _ in named]
    assert all(type(tensor) is kind and same(tensor, array) for (_, tensor), (_, array) in zip(read, named))
    names = [name for name, _ in named][::-1]
    chosen = kind.read_npz_by_name(path, names)
    assert len(chosen) == len(named)
    assert all(same(tensor, array) for tensor, (_, array) in zip(chosen, named[::-1]))
    opened = NpzTensors.new(path)
    assert opened.names() == names[::-1]
    for name, array in named:
        assert opened.get_shape_and_dtype(name) == (array.shape, DType.of(array.dtype))
        tensor = opened.get(name)
        assert tensor is not None
        assert same(tensor, array)
    with zipfile.ZipFile(path) as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    with np.load(path, allow_pickle=False) as other:
        # NumPy takes a second ".npy" off a name that ends so.
        assert all(other[n].tobytes() == a.tobytes() for n, a in named if not n.endswith(".npy"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy(tmp_path: Path, save: Callable[..., None]) -> None:
    named = {"b": np.arange(1000.0), "a": np.ones((2, 3), np.int64), "flag": np.array(True)}
    save(tmp_path / "a.npz", **named)
    read = Tensor.read_npz(tmp_path / "a.npz")
    assert [name for name, _ in read] == ["b", "a", "flag"]
    assert all(tensor.tolist() == named[name].tolist() for name, tensor in read)
    assert NpzTensors.new(tmp_path / "a.npz").get_shape_and_dtype("b") == ((1000,), DType.F64)


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Tensor.write_npz([("x", Tensor([1.0]))], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_shape_is_known_without_reading_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tensor.write_npz([("x", Tensor.zeros((500, 500)))], tmp_path / "a")
    asked = []
    read = zipfile.ZipExtFile.read

    def counted(self: Any, count: int = -1) -> bytes:
        asked.append(count)
        return read(self, count)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    assert NpzTensors.new(tmp_path / "a").get_shape_and_dtype("x") == ((500, 500), DType.F32)
    assert 0 < max(asked) <= 200
    assert min(asked) >= 0


def test_names_that_are_not_there(tmp_path: Path) -> None:
    Tensor.write_npz([("x", Tensor([1.0]))], tmp_path / "a.npz")
    opened = NpzTensors.new(tmp_path / "a.npz")
    assert opened.get("y") is None
    with pytest.raises(NpyError, match=r"a\.npz: has no array y; has x"):
        opened.get_shape_and_dtype("y")
    with pytest.raises(NpyError, match=r"a\.npz: has no array y; has x"):
        Tensor.read_npz_by_name(tmp_path / "a.npz", ["x", "y"])


@pytest.mark.parametrize("names", ["ab", b"ab", [1], ["x", None]])
def test_names_of_other_kinds_are_refused(tmp_path: Path, names: Any) -> None:
    Tensor.write_npz([("x", Tensor([1.0]))], tmp_path / "a.npz")
    with pytest.raises(Error, match=r"read_npz_by_name: got .*; takes a list of names"):
        Tensor.read_npz_by_name(tmp_path / "a.npz", names)


def test_a_dict_is_written_as_npz(tmp_path: Path) -> None:
    Tensor.write_npz({"x": Tensor([1.0]), "a": LazyTensor.new([2])}, tmp_path / "a.npz")
    assert [(name, t.tolist()) for name, t in Tensor.read_npz(tmp_path / "a.npz")] == [("x", [1.0]), ("a", [2])]


@pytest.mark.parametrize(
    "given_", [5, None, "ab", Tensor([[1.0]]), [5], ["ab"], [("a",)], [("a", 1, 2)], {1: Tensor([1])}]
)
def test_what_is_no_named_tensors_is_refused(tmp_path: Path, given_: Any) -> None:
    with pytest.raises(Error, match=r"write_npz: got .*; takes .*pairs of a name and a tensor"):
        Tensor.write_npz(given_, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "n" * 50_000])
def test_messages_are_one_line_whatever_the_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.npz", archive({f"{name}.npy": b"no array"}))
    opened = NpzTensors.new(path)
    calls: list[Any] = [
        lambda: opened.get(name),
        lambda: opened.get_shape_and_dtype(name),
        lambda: opened.get_shape_and_dtype(name + "?"),
        lambda: Tensor.read_npz_by_name(path, [name + "?"]),
        lambda: Tensor.write_npz([(name + "\0", Tensor([1.0]))], path),
        lambda: Tensor.write_npz([(name, Tensor([1.0]).to_dtype("bf16"))], path),
    ]
    for call in calls:
        with pytest.raises(NpyError) as raised:
            call()
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", Tensor([1.0])), ("a", Tensor([2.0]))], "two arrays have the same name"),
        ([("a\0b", Tensor([1.0]))], "cannot hold the name"),
        ([("a" * 70_000, Tensor([1.0]))], "takes at most 60000 bytes"),
        ([("\ud800", Tensor([1.0]))], "is no Unicode text"),
        ([("a", 1.0)], r"got \(str, float\); takes pairs of a name and a tensor"),
    ],
)
def test_what_npz_cannot_hold_is_refused_and_the_old_file_stays(tmp_path: Path, pairs: Any, message: str) -> None:
    Tensor.write_npz([("old", Tensor([1.0]))], tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(Error, match=message):
        Tensor.write_npz(pairs, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def put(value: float) -> None:
        tensor = Tensor([value])
        if name == "a.npy":
            tensor.write_npy(tmp_path / name)
        else:
            Tensor.write_npz([("x", tensor)], tmp_path / name)

    put(1.0)
    before = (tmp_path / name).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module, function in ((npy, "to_bytes"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, full)
            with pytest.raises(CheckpointError.SaveFailed, match="No space left on device"):
                put(2.0)
        assert (tmp_path / name).read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == [name]


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    header = with_header(GOOD.replace("(2,)", f"({10**9},)"))
    path = write(tmp_path / "a", archive({"x.npy": header + bytes(10**6)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(NpyError, match="x: truncated"):
        NpzTensors.new(path).get_shape_and_dtype("x")
    # The directory claims 4 GB for what can hold at most a megabyte or so.
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\1\2")
    data[start + 24 : start + 28] = b"\xf0\xff\xff\xff"
    with pytest.raises(NpyError, match=r"x\.npy: claims 4294967280 bytes in \d+"):
        NpzTensors.new(write(path, bytes(data))).get("x")


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    data = archive({"x.npy": WHOLE, "y.npy": WHOLE})
    both = bytearray(data)
    second = both.rindex(b"PK\1\2")
    for claim in (20, 24):
        both[second + claim : second + claim + 4] = struct.pack("<I", len(data))
    with pytest.raises(NpyError, match=r"claims more than its \d+ bytes"):
        NpzTensors.new(write(tmp_path / "a", bytes(both)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    path = write(tmp_path / "a", archive({"x.npy": WHOLE}, method))
    with pytest.raises(NpyError, match="compressed in another way than stored or deflated"):
        Tensor.read_npz(path)


def test_what_is_no_array_in_an_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "a", archive({"x.npy": WHOLE, "notes.txt": b"hello"}))
    assert Tensor.read_npz_by_name(path, ["x"])[0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    with pytest.raises(NpyError, match=r"a: notes\.txt: no npy file"):
        Tensor.read_npz(path)
    with pytest.raises(NpyError, match="two arrays have the same name"):
        NpzTensors.new(write(tmp_path / "a", archive({"x.npy": WHOLE, "x": WHOLE})))


ARCHIVES = [
    archive({"x.npy": WHOLE, "y.npy": saved(np.arange(3))}, m) for m in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
]


@settings(max_examples=400, deadline=None)
@given(some.data())
def test_damaged_archives_give_the_same_tensors_or_errors_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: some.DataObject
) -> None:
    whole = data.draw(some.sampled_from(ARCHIVES))
    cut = data.draw(some.just(len(whole)) | some.integers(0, len(whole)))
    flips = data.draw(some.lists(some.integers(0, 8 * len(whole) - 1), max_size=4))
    assume(flips or cut < len(whole))
    path = write(tmp_path_factory.getbasetemp() / "damaged.npz", flipped(whole, flips)[:cut])
    try:
        opened = NpzTensors.new(path)
    except NpyError:
        return
    for name in opened.names():
        with suppress(NpyError):
            opened.get_shape_and_dtype(name)
        try:
            tensor = opened.get(name)
        except NpyError:
            continue
        # The checksum has found whatever was changed inside.
        assert tensor is not None
        assert tensor.tolist() in ([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [0, 1, 2])
