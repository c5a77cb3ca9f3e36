"""The compiler, and the objects it makes: built once, kept in the user's cache, shared by processes."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from metal_candle.cache import cache_folder

from .fault import Fault

HERE = Path(__file__).parent
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
MACHINES = ("x86_64", "aarch64", "arm64")

KEPT_BYTES = 256 << 20
"""What the kept objects may take; the least recently used go first."""

COMMON = ("-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-fno-omit-frame-pointer", "-fwrapv", "-nostdlib++")
MATHS = ("-lSystem",) if sys.platform == "darwin" else ("-lm",)
# A thread with more private memory than its stack touches the page below it, not another's. Elsewhere clang 14 has no
# such code.
PROBED = ("-fstack-clash-protection",) if platform.machine() == "x86_64" else ()
DYNAMIC = () if sys.platform == "darwin" else ("-ldl",)
# A fault leaves the fibre's stack by a jump that the fortified C library takes for an error.
RUNTIME = ("-std=c++17", "-O2", "-U_FORTIFY_SOURCE", *COMMON)
KERNEL: tuple[str, ...] = (
    "-std=c++14",
    *COMMON,
    "-nostdlib",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    # What a thread reads of its own before it wrote it is NaN.
    "-ftrivial-auto-var-init=pattern",
    # A loop without end is to be seen, not taken for something that cannot be.
    "-fno-finite-loops",
    "-fno-builtin-memcpy",
    "-gline-tables-only",
    "-Wno-unknown-attributes",
    "-Wno-ignored-attributes",
    # Keeps the optimiser from copying a call of a helper into branches: the barrier in it has one place.
    "-Xclang",
    "-fconvergent-functions",
    # And from making one of two calls in two branches, which have two.
    *("-mllvm", "-simplifycfg-hoist-common=false", "-mllvm", "-simplifycfg-sink-common=false"),
    *("-mllvm", "-enable-tail-merge=false"),
    *PROBED,
)
FAST = ("-O2", "-fno-vectorize", "-fno-slp-vectorize", "-DEM_FAST")
CHECKED = (
    "-O1",
    "-fsanitize=thread,array-bounds,shift-exponent,integer-divide-by-zero",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    # A read that a write to the same place follows is as much a read.
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
)


def available() -> tuple[bool, str]:
    """Whether the emulator runs here, and why not if it does not."""
    if sys.platform not in ("linux", "darwin"):
        return False, f"the emulator runs on Linux and macOS, not on {sys.platform}"
    if platform.machine() not in MACHINES:
        return False, f"the emulator runs on {', '.join(MACHINES)}, not on {platform.machine()}"
    if compiler() is None:
        return False, "the emulator needs clang++, which is not installed"
    return True, ""


@cache
def compiler() -> str | None:
    """The path of clang++, of version 14 or later by its name if the plain one is missing."""
    names = ["clang++", *[f"clang++-{version}" for version in range(30, 13, -1)]]
    return next((path for path in map(shutil.which, names) if path), None)


@cache
def identity() -> str:
    """Of the compiler: its file's place, size and date. To ask for its version would start it in every process.

    Raises ``RuntimeError`` without one.
    """
    path = compiler()
    if path is None:
        raise RuntimeError(f"emulator: {available()[1]}")
    status = os.stat(path)
    return f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}"


@cache
def fingerprint() -> str:
    """Of the compiler and of everything of the emulator's own that an object depends on."""
    files = [HERE / "as_cpp.h", *sorted((HERE / "shim").glob("*.h")), *sorted((HERE / "runtime").glob("*"))]
    parts = [identity(), *map(str, (RUNTIME, KERNEL, FAST, CHECKED))]
    parts += [f"{path.relative_to(HERE)}\n{path.read_text(encoding='utf-8')}" for path in files]
    return _hash(*parts)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def folder() -> Path:
    """Where objects are kept."""
    return cache_folder("emulator")


def _writable(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RuntimeError(
            f"emulator: cannot keep objects in {path}: {error.strerror}; METAL_CANDLE_CACHE names another folder"
        ) from None
    return path


def kept_folder() -> Path:
    """``folder()``, made. Raises ``RuntimeError`` where it cannot be written."""
    return _writable(folder())


def kernel_path(text: str, checked: bool) -> Path:
    """Where the object of this text is, or will be."""
    return folder() / f"kernel-{_hash(fingerprint(), 'checked' if checked else 'fast', text)}{SUFFIX}"


def build_kernel(text: str, checked: bool) -> Path:
    """The object of this text, which includes ``as_cpp.h``. Raises ``Fault`` of kind "compile" for an error in it."""
    path = kernel_path(text, checked)
    flags = [*KERNEL, *(CHECKED if checked else FAST), "-fno-sanitize-link-runtime", f"-I{HERE}"]
    # The runtime lies in the same folder, and the kernel looks for it there.
    link = ["-Wl,-rpath,@loader_path"] if sys.platform == "darwin" else ["-Wl,-rpath,$ORIGIN", "-Wl,-z,defs"]
    return _build(path, [*flags, *link, "kernel.cpp", str(runtime()), *MATHS], {"kernel.cpp": text})


def runtime() -> Path:
    """The object of ``runtime/``."""
    path = folder() / f"runtime-{fingerprint()}{SUFFIX}"
    name = ["-install_name", f"@rpath/{path.name}"] if sys.platform == "darwin" else [f"-Wl,-soname,{path.name}"]
    sources = sorted(map(str, (HERE / "runtime").glob("*.cpp")))
    return _build(path, [*RUNTIME, *name, *sources, "-lm", *DYNAMIC], {})


def _build(path: Path, arguments: list[str], texts: dict[str, str]) -> Path:
    with suppress(FileNotFoundError, NotADirectoryError):  # not built yet; or just removed by another process
        os.utime(path)
        return path
    kept_folder()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        for name, text in texts.items():
            (Path(scratch) / name).write_text(text, encoding="utf-8")
        assert compiler() is not None
        command = [str(compiler()), *arguments, "-o", path.name]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if done.returncode != 0:
            raise Fault("compile", _errors(done.stderr))
        # A rename is all or nothing: another process sees no object or a whole one.
        os.replace(Path(scratch) / path.name, path)
    _shrink(path.parent)
    return path


def _errors(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line or "undefined reference" in line]
    return "\n".join(lines[:8] or output.splitlines()[:8])


def _shrink(where: Path) -> None:
    """Remove the objects used longest ago, down to three quarters of the bound."""
    found: list[tuple[float, int, Path]] = []
    for path in (path for path in where.iterdir() if path.is_file()):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process shrinks it too
            continue
        found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    if total <= KEPT_BYTES:
        return
    for _, size, path in sorted(found):
        path.unlink(missing_ok=True)
        total -= size
        if total <= KEPT_BYTES * 3 // 4:
            return
