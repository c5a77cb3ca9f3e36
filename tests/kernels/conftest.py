"""The back-ends that launch kernels of ours: the emulator where clang is, Metal or CUDA where it is."""

from __future__ import annotations

from collections.abc import Iterator

from metal_candle import settings
from metal_candle.kernels import custom

import emulator
import mlx.core as mx
import pytest

GPUS = {"metal": mx.metal, "cuda": mx.cuda}


@pytest.fixture(params=["emulator", *[name for name, module in GPUS.items() if module.is_available()]])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Launches every kernel of ours that fits, on each back-end that is present, whatever the rules say."""
    name: str = request.param
    with settings.KERNELS.override("custom"):
        if name in GPUS:
            with mx.stream(mx.gpu):
                yield name
        else:
            present, reason = emulator.available()
            if not present:
                pytest.skip(reason)
            with custom.using(emulator.Emulator()):
                yield name
