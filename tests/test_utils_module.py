"""``metal_candle.utils`` says what is true of this process."""

from __future__ import annotations

import _ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from metal_candle import blas, utils

import mlx.core as mx
import pytest


def in_a_process(**environment: str) -> list[str]:
    code = "from metal_candle import utils; print(utils.get_num_threads(), utils.has_mkl(), utils.has_accelerate())"
    kept = {
        name: value for name, value in os.environ.items() if name not in ("OPENBLAS_NUM_THREADS", "METAL_CANDLE_BLAS")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**kept, **environment}
    )
    return done.stdout.split()


def test_gpus() -> None:
    assert utils.cuda_is_available() is mx.cuda.is_available()
    assert utils.metal_is_available() is mx.metal.is_available()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or blas.status().found != blas.WHEEL, reason="no OpenBLAS of ours")
def test_threads_are_those_of_the_blas() -> None:
    # OpenBLAS starts no more threads than there are cores.
    for wanted in {1, min(2, len(os.sched_getaffinity(0)))}:
        assert in_a_process(OPENBLAS_NUM_THREADS=str(wanted)) == [str(wanted), "False", "False"]
    assert in_a_process(METAL_CANDLE_BLAS="off") == ["1", "False", "False"]


@pytest.mark.parametrize(
    ("path", "mkl"), [(None, False), (Path("/opt/lib/libmkl_rt.so.2"), True), (Path("/usr/lib/libopenblas.so"), False)]
)
def test_mkl_is_known_by_its_file(monkeypatch: pytest.MonkeyPatch, path: Any, mkl: bool) -> None:
    monkeypatch.setattr(blas, "_status", blas.Blas(path, blas.SETTING))
    assert utils.has_mkl() is mkl


def test_a_blas_that_tells_nothing_is_given_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setattr(utils, "_openblas_threads", lambda path: None)
    monkeypatch.setattr(blas, "_status", blas.Blas(Path("/opt/libother.so"), blas.SETTING))
    assert utils.get_num_threads() == cores
    monkeypatch.setattr(blas, "_status", blas.Blas(None, blas.OWN))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert utils.has_accelerate()
    assert utils.get_num_threads() == cores


def test_a_library_that_is_no_openblas() -> None:
    assert utils._openblas_threads(Path(_ctypes.__file__)) is None


def test_the_cpu() -> None:
    arm = platform.machine() in ("arm64", "aarch64")
    assert utils.with_neon() is arm
    assert utils.with_simd128() is False
    if arm or sys.platform != "linux":
        assert not utils.with_avx()
        assert not utils.with_f16c()
    else:
        flags = Path("/proc/cpuinfo").read_text().split()
        assert utils.with_avx() is ("avx2" in flags)
        assert utils.with_f16c() is ("f16c" in flags)


def test_where_the_cpu_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise FileNotFoundError("/proc/cpuinfo")

    utils._cpu_flags.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", refuse)
            assert not utils.with_avx()
            assert not utils.with_f16c()
    finally:
        utils._cpu_flags.cache_clear()


def test_with_threadpool_calls() -> None:
    assert utils.with_threadpool(lambda: 7) == 7
