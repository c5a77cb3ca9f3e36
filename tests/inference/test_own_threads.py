"""Streams in threads of the user's own: none of them keeps the interpreter from ending well."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from metal_candle.inference import BatchGenerator, Generator, GeneratorConfig, SamplingStrategy
from metal_candle.inference import sampling as module
from metal_candle.models import load_model

import pytest

DRAWN = SamplingStrategy.Temperature(temperature=1.0)


@pytest.mark.parametrize(
    "config", [GeneratorConfig(max_tokens=3), GeneratorConfig(max_tokens=3, sampling=DRAWN, seed=4)]
)
def test_what_draws_nothing_does_not_ask_mlx_for_a_seed(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, config: GeneratorConfig
) -> None:
    model = load_model(tiny_model_dir()).model
    monkeypatch.setattr(module, "next_key", lambda: pytest.fail("asked"))
    assert Generator(model, config).generate([3, 4, 5])[:3] == [3, 4, 5]
    assert BatchGenerator(model, config).generate([[3, 4, 5]])[0][:3] == [3, 4, 5]


SCRIPT = """
import sys, threading
from metal_candle.inference import Generator, GeneratorConfig
from metal_candle.models import load_model
generator = Generator(load_model(sys.argv[1]).model, GeneratorConfig(max_tokens=2))
for _ in range(4):
    threads = [threading.Thread(target=lambda: list(generator.stream([3, 4, 5]))) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_the_interpreter_ends_well_behind_threads_that_generated(tiny_model_dir: Callable[..., Path]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_model_dir())], capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stderr) == (0, "")
