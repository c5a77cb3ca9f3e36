"""PyTorch checkpoints: what PyTorch wrote is read, damage is found."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from metal_candle import DType, Tensor
from metal_candle.error import IoError, NotFoundError, PthError
from metal_candle.formats.reading import OpenFile
from metal_candle.pickle import PthTensors, read_all, read_all_with_key, read_pth_tensor_info

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

DATA = Path(__file__).parent / "data"
BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
MODULE = {
    "0.weight": ([3, 2], [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]),
    "0.bias": ([3], [0.0, 1.0, 2.0]),
    "1.weight": ([3], [0.0, 1.0, 2.0]),
    "1.bias": ([3], [0.0, 1.0, 2.0]),
    "1.running_mean": ([3], [0.0, 1.0, 2.0]),
    "1.running_var": ([3], [0.0, 1.0, 2.0]),
    "1.num_batches_tracked": ([], 0),
}


def shapes_and_values(tensors: list[tuple[str, Tensor]]) -> dict[str, Any]:
    return {name: (tensor.dims(), tensor.tolist()) for name, tensor in tensors}


def changed(source: Path, target: Path, **entries: bytes | None) -> Path:
    """A copy of a checkpoint with other entries: ``None`` takes one out, ``data_0`` is ``data/0``."""
    wanted = {key.replace("_", "/"): data for key, data in entries.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            folder, _, key = name.partition("/")
            data = wanted.pop(key, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for key, data in wanted.items():
            if data is not None:
                new.writestr(f"{folder}/{key}", data)
    return target


# --- what PyTorch wrote -----------------------------------------------------------------------


def test_every_dtype() -> None:
    read = dict(read_all(DATA / "dtypes.pth"))
    assert {name: tensor.dtype for name, tensor in read.items()} == {
        "float64": DType.F64,
        "float32": DType.F32,
        "float16": DType.F16,
        "bfloat16": DType.BF16,
        "int64": DType.I64,
        "int32": DType.I32,
        "int16": DType.I16,
        "uint32": DType.U32,
        "uint8": DType.U8,
        "bool": DType.U8,
    }
    for name, tensor in read.items():
        assert tensor.tolist() == ([0, 1, 0, 1, 0, 1] if name == "bool" else [0, 1, 2, 3, 4, 5])
        assert tensor.device.is_cpu()


def test_views_of_one_storage() -> None:
    expected = {
        "whole": BASE,
        "transposed": BASE.transpose(2, 1, 0),
        "part": BASE[1, 1:, 1:3],
        "steps": BASE.reshape(-1)[3::5],
        "expanded": np.broadcast_to(BASE[0, 0, :1], (3, 5)),
        "scalar": BASE[1, 2, 3],
        "empty": np.zeros((3, 0), np.float32),
        "parameter": BASE[0],
    }
    read = dict(read_all(DATA / "strided.pth"))
    assert list(read) == list(expected)
    opened = PthTensors.new(DATA / "strided.pth")
    for name, array in expected.items():
        for tensor in (read[name], opened.get(name)):
            assert tensor is not None
            assert (tensor.shape, tensor.tolist()) == (array.shape, array.tolist())
    info = opened.tensor_infos()["transposed"]
    assert (info.dtype, info.layout.shape, info.layout.stride) == (DType.F32, (4, 3, 2), (1, 4, 12))
    assert (info.path, info.storage_size) == ("strided/data/0", 24)
    assert opened.tensor_infos()["part"].layout.start_offset == 17


def test_a_storage_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_ = zipfile.ZipFile.open

    def counted(self: Any, info: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(info.filename)
        return open_(self, info, *args, **kwargs)

    monkeypatch.setattr(zipfile.ZipFile, "open", counted)
    read_all(DATA / "strided.pth")
    assert opened.count("strided/data/0") == 1
    opened.clear()
    assert PthTensors.new(DATA / "dtypes.pth").get("int16") is not None
    assert len([name for name in opened if "/data/" in name]) == 1


def test_nested_dictionaries_have_dotted_names_and_other_values_are_passed_over() -> None:
    read = shapes_and_values(read_all(DATA / "nested.pth"))
    assert read == {
        **{f"state_dict.{name}": value for name, value in MODULE.items()},
        "optimizer.state.0.step": ([], 7.0),
        "list.0": ([4], [0.0, 1.0, 2.0, 3.0]),
        "list.2.0": ([4], [4.0, 5.0, 6.0, 7.0]),
    }


def test_a_key_chooses_a_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "nested.pth"
    assert shapes_and_values(read_all_with_key(path, "state_dict")) == MODULE
    infos = read_pth_tensor_info(path, verbose=True, key="optimizer")
    assert [(info.name, info.dtype, info.layout.dims()) for info in infos] == [("state.0.step", DType.F32, [])]
    assert capsys.readouterr().out == f"state.0.step: [] f32, {infos[0].path}\n"
    opened = PthTensors.new(path, "state_dict")
    assert list(opened.tensor_infos()) == list(MODULE)
    assert opened.get("absent") is None
    assert read_all_with_key(path, "epoch") == []
    with pytest.raises(PthError, match=r"nested\.pth: has no key 'model'; has epoch, rate, name"):
        read_all_with_key(path, "model")


def test_settings_and_counters_beside_tensors_are_passed_over() -> None:
    for name in ("settings.pth", "settings4.pth"):
        read = shapes_and_values(read_all(DATA / name))
        assert read == {
            "default.a": ([2], [0.0, 1.0]),
            "deque.0": ([2], [2.0, 3.0]),
            "buffer": ([2], [4.0, 5.0]),
            "parameter": ([2], [6.0, 7.0]),
            "keys.(1, 2)": ([1], [0.0]),
            "keys.None": ([1], [1.0]),
            "keys.1.5": ([1], [2.0]),
            "keys.-3": ([1], [3.0]),
            "keys.True": ([1], [4.0]),
            "keys.b'x'": ([1], [5.0]),
            "keys.('a', (None, 0.5))": ([1], [6.0]),
            "keys.<torch.device>": ([1], [7.0]),
        }


def test_a_tensor_made_in_another_way_is_named() -> None:
    opened = PthTensors.new(DATA / "sparse.pth")
    kept = opened.get("w")
    assert kept is not None
    assert kept.tolist() == [0.0, 1.0, 2.0, 3.0]
    message = r"sparse\.pth: tensor sparse is made by torch\._utils\._rebuild_sparse_tensor, which is not read"
    for read in (lambda: opened.get("sparse"), opened.tensor_infos, lambda: read_all(DATA / "sparse.pth")):
        with pytest.raises(PthError, match=message):
            read()


def test_a_part_of_a_storage_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = PthTensors.new(DATA / "strided.pth")
    read: list[int] = []
    read_ = OpenFile.read

    def counted(self: OpenFile, begin: int, end: int) -> bytearray:
        read.append(end - begin)
        return read_(self, begin, end)

    monkeypatch.setattr(OpenFile, "read", counted)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("read the whole storage"))
    part, last = opened.get("part"), opened.get("scalar")
    assert part is not None
    assert last is not None
    assert part.tolist() == BASE[1, 1:, 1:3].tolist()
    assert last.tolist() == BASE[1, 2, 3]
    assert read == [30, 4 * 6, 30, 4]  # the entry's header, from the first to the last element


def test_a_part_of_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(WHOLE)
    opened = PthTensors.new(path)
    path.write_bytes(WHOLE[:100])
    with pytest.raises(PthError, match=r"strided/data/0: (truncated at 0 bytes of 4|its offset leads to no entry)"):
        opened.get("scalar")


def test_other_pickle_protocols() -> None:
    assert shapes_and_values(read_all(DATA / "protocol4.pth")) == MODULE


def test_what_is_not_read_is_named() -> None:
    with pytest.raises(PthError, match=r"value is a module, torch\.nn\.modules\.linear\.Linear, .*save its state_dict"):
        read_all(DATA / "module.pth")
    with pytest.raises(PthError, match=r"legacy\.pth: is a bare pickle, as PyTorch before 1\.6 wrote; load and save"):
        read_all(DATA / "legacy.pth")
    message = r"int8\.pth: tensor w is int8; takes float64"
    with pytest.raises(PthError, match=message) as raised:
        read_all(DATA / "int8.pth")
    assert isinstance(raised.value, ValueError)
    opened = PthTensors.new(DATA / "int8.pth")
    with pytest.raises(PthError, match=message):
        opened.get("w")
    with pytest.raises(PthError, match=message):
        opened.tensor_infos()
    tensor = opened.get("x")
    assert tensor is not None
    assert tensor.tolist() == BASE.tolist()


def test_against_torch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    saved = {
        "normal": torch.randn(5, 7),
        "bf16": torch.randn(3, 2).to(torch.bfloat16),
        "flipped": torch.randn(4, 6).t()[1:, ::2],
        "long": torch.arange(5) * 10**12,
        "lone": torch.tensor(3.5, dtype=torch.float64),
    }
    for protocol in (2, 3, 4, 5):
        torch.save({"model": saved}, tmp_path / "a.pth", pickle_protocol=protocol)
        read = dict(read_all_with_key(tmp_path / "a.pth", "model"))
        assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in saved.items()}
    torch.save(saved["normal"], tmp_path / "a.pth")
    assert [(name, tensor.tolist()) for name, tensor in read_all(tmp_path / "a.pth")] == [
        ("", saved["normal"].tolist())
    ]


# --- damage -----------------------------------------------------------------------------------


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(NotFoundError, match=r"a\.pth: no such file"):
        read_all(path)
    with pytest.raises(IoError, match="is a folder; takes a file"):
        read_all(tmp_path)
    for data, message in [
        (b"", "is empty"),
        (b"hello", "no zip archive"),
        (b"PK\3\4hello", "no zip archive, or a damaged one"),
    ]:
        path.write_bytes(data)
        with pytest.raises(PthError, match=message):
            read_all(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(PthError, match=r"a zip archive without a data\.pkl"):
        read_all(path)


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PthError, match="holds big-endian numbers"):
        read_all(changed(DATA / "strided.pth", tmp_path / "a", byteorder=b"big"))
    older = changed(DATA / "strided.pth", tmp_path / "b", byteorder=None)
    assert len(read_all(older)) == 8


def test_storages_that_are_short_or_not_there(tmp_path: Path) -> None:
    short = changed(DATA / "strided.pth", tmp_path / "short", data_0=bytes(4 * 23))
    with pytest.raises(PthError, match="tensor whole needs 24 elements, its storage has 23"):
        read_all(short)
    opened = PthTensors.new(short)
    part = opened.get("parameter")
    assert part is not None
    assert part.tolist() == np.zeros((3, 4)).tolist()
    with pytest.raises(PthError, match="tensor scalar needs 24 elements"):
        opened.get("scalar")
    with pytest.raises(PthError, match="tensor whole: the storage strided/data/0 is not there"):
        read_all(changed(DATA / "strided.pth", tmp_path / "none", data_0=None))


WHOLE = (DATA / "strided.pth").read_bytes()
VALUES = {name: tensor.tolist() for name, tensor in read_all(DATA / "strided.pth")}


@settings(max_examples=400, deadline=None)
@given(some.data())
def test_damaged_checkpoints_give_the_same_tensors_or_errors_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: some.DataObject
) -> None:
    cut = data.draw(some.just(len(WHOLE)) | some.integers(0, len(WHOLE)))
    flips = data.draw(some.lists(some.integers(0, 8 * len(WHOLE) - 1), max_size=3))
    assume(flips or cut < len(WHOLE))
    damaged = bytearray(WHOLE)
    for flip in flips:
        damaged[flip // 8] ^= 1 << flip % 8
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(damaged[:cut])
    try:
        read = read_all(path)
    except PthError:
        return
    assert {name: tensor.tolist() for name, tensor in read} == VALUES


def test_compressed_copies_are_read(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as new,
        zipfile.ZipFile(io.BytesIO(WHOLE)) as old,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert {name: tensor.tolist() for name, tensor in read_all(tmp_path / "a.pth")} == VALUES
