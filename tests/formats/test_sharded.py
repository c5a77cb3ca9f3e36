"""Folders of shards: what is written is read, an old checkpoint goes whole, a failure leaves it."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from metal_candle import Tensor
from metal_candle import safetensors as st
from metal_candle.error import CheckpointError, Error, IoError, NotFoundError, SafeTensorError
from metal_candle.formats import sharded

import numpy as np
import pytest
from safetensors.numpy import load_file


def tensors(count: int = 5, offset: int = 0) -> dict[str, Tensor]:
    return {f"t{i}": Tensor(np.arange(10, dtype=np.float32) + i + offset) for i in range(count)}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[n].tolist() == right[n].tolist() for n in left)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_split_fills_files_in_order() -> None:
    assert sharded.split({"a": 4, "b": 4, "c": 9, "d": 1}, 8) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d"],
    }
    assert sharded.split({"a": 4}, 1) == {sharded.WHOLE: ["a"]}
    assert sharded.split({}, 1) == {sharded.WHOLE: []}


def test_shards_and_index_are_read_by_folder_by_index_and_by_others(tmp_path: Path) -> None:
    saved = tensors()
    st.save_sharded(saved, tmp_path, 80, {"format": "pt"})
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(tmp_path) == [*shards, sharded.INDEX]
    index = json.loads((tmp_path / sharded.INDEX).read_text())
    assert index["metadata"] == {"total_size": 200}
    assert index["weight_map"] == dict(zip(saved, [shards[0], shards[0], shards[1], shards[1], shards[2]]))
    assert equal(st.load(tmp_path), saved)
    assert equal(st.load(tmp_path / sharded.INDEX), saved)
    assert load_file(tmp_path / shards[2])["t4"].tolist() == saved["t4"].tolist()
    several = st.MmapedSafetensors.multi([tmp_path / shard for shard in shards])
    assert sorted(name for name, _ in several.tensors()) == sorted(saved)
    assert several.metadata() == {"format": "pt"}
    assert several.load("t3").tolist() == saved["t3"].tolist()


@pytest.mark.parametrize(("first", "second"), [(80, 1000), (1000, 80), (80, 40), (40, 80)])
def test_another_checkpoint_in_the_same_folder_replaces_the_first(tmp_path: Path, first: int, second: int) -> None:
    st.save_sharded(tensors(), tmp_path, first)
    (tmp_path / "adapter.safetensors").touch()
    st.save_sharded(tensors(4, offset=50), tmp_path, second)
    assert equal(st.load(tmp_path), tensors(4, offset=50))
    written = set(sharded.split(dict.fromkeys(tensors(4), 40), second))
    assert set(names(tmp_path)) == written | {"adapter.safetensors"} | ({sharded.INDEX} if len(written) > 1 else set())


@pytest.mark.parametrize("failing", ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"])
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    st.save_sharded(tensors(), tmp_path, 80)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    opened = Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        if failing in self.name and "w" in str(args):
            raise OSError(28, "No space left on device")
        return opened(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(CheckpointError.SaveFailed, match="No space left on device"):
            st.save_sharded(tensors(offset=50), tmp_path, 80)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_an_old_file_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    st.save_sharded(tensors(), tmp_path, 1000)
    unlink = Path.unlink

    def denied(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".old":
            raise PermissionError(13, os.strerror(13))
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", denied)
        with pytest.raises(IoError, match=r"model\.safetensors.*\.old: Permission denied; the new files are complete"):
            st.save_sharded(tensors(offset=50), tmp_path, 80)
    assert equal(st.load(tmp_path), tensors(offset=50))


@pytest.mark.parametrize(("first", "second"), [(80, 80), (1000, 80), (80, 1000), (1000, 1000), (40, 80)])
def test_a_rename_that_fails_is_undone_whichever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    st.save_sharded(tensors(), tmp_path, first)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    replace, calls = os.replace, [0]
    for failing in range(20):
        calls[0] = 0

        def refuse(source: Any, place: Any, failing: int = failing) -> None:
            calls[0] += 1
            if calls[0] == failing + 1:
                raise OSError(5, "Input/output error")
            replace(source, place)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            message = ""
            try:
                st.save_sharded(tensors(offset=50), tmp_path, second)
            except CheckpointError.SaveFailed as error:
                message = str(error)
        if not message:
            break
        assert message.endswith("Input/output error; what was there is unchanged")
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
        assert equal(st.load(tmp_path), tensors())
    # Every rename has failed once: at least one away and one into place.
    assert failing >= 2
    assert equal(st.load(tmp_path), tensors(offset=50))


def test_what_cannot_be_undone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    st.save_sharded(tensors(), tmp_path, 80)
    replace, calls = os.replace, [0]

    def refuse(source: Any, place: Any) -> None:
        calls[0] += 1
        if calls[0] > 2:
            raise OSError(5, "Input/output error")
        replace(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(CheckpointError.SaveFailed) as raised:
            st.save_sharded(tensors(offset=50), tmp_path, 80)
    moved = dict(re.findall(r"(model\S*) is now (\S*\.old)", str(raised.value)))
    assert set(moved) == {sharded.INDEX, "model-00003-of-00003.safetensors"}
    for name, place in moved.items():
        (tmp_path / place).rename(tmp_path / name)
    assert equal(st.load(tmp_path), tensors())


def test_links_to_shards_stay_links_and_permissions_stay(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "folder", tmp_path / "blobs"
    st.save_sharded(tensors(), folder, 80)
    blobs.mkdir()
    shard = folder / "model-00002-of-00003.safetensors"
    shard.rename(blobs / "2")
    (blobs / "2").chmod(0o640)
    shard.symlink_to(blobs / "2")
    st.save_sharded(tensors(offset=50), folder, 80)
    assert shard.is_symlink()
    assert stat.S_IMODE((blobs / "2").stat().st_mode) == 0o640
    assert equal(st.load(folder), tensors(offset=50))
    st.save_sharded(tensors(), folder, 1000)  # the link is of no use any more; what it leads to is not ours
    assert (names(folder), names(blobs)) == ([sharded.WHOLE], ["2"])


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "n" * 5000, "file/in", 5])
def test_folders_that_cannot_be_written(tmp_path: Path, name: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Error) as raised:
        st.save_sharded(tensors(), tmp_path / name if isinstance(name, str) else name, 80)
    assert isinstance(raised.value, CheckpointError.SaveFailed) or name == 5
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 700
    assert names(tmp_path) == ["file"]


def test_a_folder_without_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, os.strerror(13))

    with monkeypatch.context() as patch:
        for method in ("stat", "iterdir"):
            patch.setattr(Path, method, denied)
        with pytest.raises(CheckpointError.SaveFailed, match="Permission denied"):
            st.save_sharded(tensors(), tmp_path, 80)
    with monkeypatch.context() as patch:
        for method in ("is_dir", "is_file", "stat"):
            patch.setattr(Path, method, denied)
        for path in (tmp_path, tmp_path / "x.index.json"):
            with pytest.raises(IoError):
                st.load(path)


def test_the_index_says_which_of_two_tensors_of_a_name_counts(tmp_path: Path) -> None:
    st.save({"a": Tensor([1.0])}, tmp_path / "1.safetensors")
    st.save({"a": Tensor([2.0])}, tmp_path / "2.safetensors")
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    assert st.load(tmp_path / "x.index.json")["a"].tolist() == [1.0]
    both = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    assert st.MmapedSafetensors.multi(both).load("a").tolist() == [2.0]
    assert st.MmapedSafetensors.multi(both[::-1]).load("a").tolist() == [1.0]


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nor model\.safetensors\.index\.json"):
        st.load(tmp_path)
    with pytest.raises(NotFoundError, match="absent"):
        st.load(tmp_path / "absent")
    index = tmp_path / sharded.INDEX
    with pytest.raises(NotFoundError, match=r"model\.safetensors\.index\.json: no such file"):
        st.load(index)
    for text in (
        "{",
        "{}",
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": ""}, "weight_map": {}}',
        '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {"a": "b\\u0000"}}',
        "[]",
    ):
        index.write_text(text)
        with pytest.raises(SafeTensorError, match=r"model\.safetensors\.index\.json"):
            st.load(tmp_path)
    st.save({"a": Tensor([1.0])}, tmp_path / "b")
    index.write_text('{"weight_map": {"a": "b", "c": "b"}}')
    with pytest.raises(SafeTensorError, match="puts tensor c into b, which lacks it"):
        st.load(tmp_path)
    with pytest.raises(Error, match="max_shard_size 0; takes at least 1 byte"):
        st.save_sharded(tensors(), tmp_path, 0)
    with pytest.raises(Error, match="got list for a; takes tensors"):
        st.save_sharded({"a": [1.0]}, tmp_path)  # type: ignore[dict-item]
