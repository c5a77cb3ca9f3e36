"""Checks and compiles in parallel what is launched later: a compiler at a time would leave all cores but one idle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from metal_candle.kernels import custom

from . import toolchain
from .check import type_check
from .fault import Fault
from .generate import Array, Generated, metal_source
from .glue import run_source


def build_ahead(launches: Iterable[tuple[custom.Program, Sequence[Array], custom.Launch]], run: bool = True) -> None:
    """Fill the cache of verdicts and, if they are to ``run``, of objects. What has an error says so when launched."""
    if not toolchain.available()[0]:
        return
    texts = [metal_source(*launch) for launch in launches]
    if run and texts:
        toolchain.runtime()  # all of them need it
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_checked_and_built if run else _checked, texts))


def _checked(generated: Generated) -> bool:
    try:
        type_check(generated)
    except Fault:
        return False
    return True


def _checked_and_built(generated: Generated) -> None:
    if _checked(generated):
        try:
            toolchain.build_kernel(run_source(generated), checked=True)
        except Fault:
            return
