"""Kernels compiled for CUDA as MLX compiles them, and what they use of the machine. Kept on disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from metal_candle.cache import cache_folder

import mlx_library
import nvrtc
from cuda_text import Text, together

PROCESSES = 2
MOST = 16
"""Kernels of one text. CUDA's headers take two seconds to parse, a kernel a fifth of one."""
HOPPER = "sm_90a"
"""The architecture that kernels are compiled for down to machine code."""

_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
# Lines of ptxas -v that report and do not warn.
_REPORT = re.compile(r"^ptxas (info|  +\.)")
_ENTRY = "Compiling entry function '"


@dataclass(frozen=True)
class Compiled:
    """What came of a kernel: numbers are 0 for PTX.

    ``said`` are errors and warnings, empty if there are none; ``shared`` and ``stack`` bytes; ``spilled`` bytes stored
    to memory and loaded from it for want of registers.
    """

    failed: bool
    said: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spilled: int = 0


def available() -> tuple[bool, str]:
    """Whether kernels can be compiled here, and what is missing if not."""
    if nvrtc.shared_object() is None or nvrtc.headers() is None:
        return False, "nvidia-cuda-nvrtc and nvidia-cuda-runtime are not installed: pip install '.[cuda-check]'"
    if mlx_library.found() is None:
        return False, f"{mlx_library.WHEEL} names no folder with the wheel mlx-cuda-13"
    return True, ""


class Compiler:
    """Compiles texts in processes of its own: NVRTC lets one thread of a process in."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        path = mlx_library.found()
        if path is None:
            raise RuntimeError(available()[1])
        self._headers = mlx_library.headers(path)
        self._pool = pool
        included = hashlib.sha256(json.dumps(self._headers.embedded).encode()).hexdigest()
        self._identity = f"{nvrtc.version()} {path.name} {included}"

    def compile_all(self, texts: Sequence[Text], architecture: str = HOPPER, most: int = MOST) -> list[Compiled]:
        """Each of the kernels; from the cache where its text is the same.

        Up to ``most`` kernels of one prologue share a text. Each is compiled alone, as MLX does it, if there is
        anything to say about them together.
        """
        # MLX's options, in its order, and the report.
        options = [
            "--device-as-default-execution-space",
            f"--gpu-architecture={architecture}",
            f"--include-path={self._headers.cccl}",
            f"--include-path={nvrtc.headers()}",
            "--ptxas-options=-v",
        ]
        kept = {text: self._kept(text, architecture, most) for text in texts}
        missing = [text for text, file in kept.items() if not file.exists()]
        units = list(_units(missing, most))
        running = [self._pool.submit(_compile, unit, self._headers.embedded, options) for unit in units]
        # What failed is not kept: a compiler that lacks a file of its own may have it the next time.
        failed: dict[Text, Compiled] = {}
        for unit, future in zip(units, running):
            for text, compiled in zip(unit, future.result()):
                if compiled.failed:
                    failed[text] = compiled
                else:
                    _write(kept[text], compiled)
        return [failed.get(text) or Compiled(**json.loads(kept[text].read_text())) for text in texts]

    def _kept(self, text: Text, architecture: str, most: int) -> Path:
        key = "\0".join([self._identity, architecture, text.name, text.whole, "alone" if most == 1 else ""])
        return cache_folder("cuda-check", f"{hashlib.sha256(key.encode()).hexdigest()}.json")


@contextmanager
def compiler() -> Iterator[Compiler]:
    """A compiler, with its processes until the end of the block."""
    # Not forked: MLX's and pytest's threads may hold locks.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        yield Compiler(pool)


def _units(texts: Sequence[Text], most: int) -> Iterator[list[Text]]:
    prologues = dict.fromkeys(text.prologue for text in texts)
    for prologue in prologues:
        same = [text for text in texts if text.prologue == prologue]
        for start in range(0, len(same), most):
            yield same[start : start + most]


def _compile(unit: Sequence[Text], included: dict[str, str], options: Sequence[str]) -> list[Compiled]:
    names, whole = ([unit[0].name], unit[0].whole) if len(unit) == 1 else together(unit)
    code, log = nvrtc.compile_text(whole, [f"mlx::core::cu::{name}" for name in names], included, options)
    said = "\n".join(line for line in log.splitlines() if line.strip() and not _REPORT.match(line))
    if said and len(unit) > 1:
        return [_compile([text], included, options)[0] for text in unit]
    reports = log.split(_ENTRY)[1:]
    return [_read(not code, said, _report(reports, name)) for name in names]


def _report(reports: Sequence[str], name: str) -> str:
    # Mangled, a name has its length before it and, being the last of a qualified one, an E after it.
    return next((report for report in reports if f"{len(name)}{name}E" in report.partition("'")[0]), "")


def _read(failed: bool, said: str, report: str) -> Compiled:
    used, shared, stack = _USED.search(report), _SHARED.search(report), _STACK.search(report)
    return Compiled(
        failed,
        said,
        registers=int(used[1]) if used else 0,
        shared=int(shared[1]) if shared else 0,
        stack=int(stack[1]) if stack else 0,
        spilled=int(stack[2]) + int(stack[3]) if stack else 0,
    )


def _write(file: Path, compiled: Compiled) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole: a run beside this one, or one that was interrupted, does no harm.
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(asdict(compiled)))
    beside.replace(file)
