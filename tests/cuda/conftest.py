"""The compiler for CUDA, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compilation import Compiler, available, compiler


@pytest.fixture(scope="session")
def compiling() -> Iterator[Compiler]:
    """Compiles kernels as MLX for CUDA does; skips where something is missing."""
    present, reason = available()
    if not present:
        pytest.skip(reason)
    with compiler() as ready:
        yield ready
