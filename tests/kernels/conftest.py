"""The back-ends that launch kernels of ours: the emulator where clang is, Metal or CUDA where it is."""

from __future__ import annotations

from collections.abc import Iterator

from metal_candle import settings
from metal_candle.kernels import custom

import emulator
import mlx.core as mx
import pytest
from emulator.ahead import build_ahead

GPUS = {"metal": mx.metal, "cuda": mx.cuda}


MANY = 300
"""Tests that launch: from here on it pays to compile every instantiation first, on all cores."""


@pytest.fixture(scope="session")
def instantiations_built(request: pytest.FixtureRequest) -> None:
    """The instantiations of our kernels are compiled for the emulator, where most tests are run and not a few."""
    launching = [item for item in request.session.items if "device" in getattr(item, "fixturenames", ())]
    if len(launching) >= MANY:
        from instantiations import instantiations  # here: it records every kernel

        build_ahead([case[1:] for case in instantiations()])


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
            request.getfixturevalue("instantiations_built")
            with custom.using(emulator.Emulator()):
                yield name
