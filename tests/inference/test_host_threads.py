"""Products by parts, in threads: numbers that are none, parts that are empty, and processes that end or fork."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from metal_candle.inference import host_products

import mlx.core as mx
import numpy as np
import pytest

LATE = """
import os
import threading
import metal_candle
import numpy as np
from metal_candle.inference import host_products

host_products._threads()[0].submit(int).result()
host_products._threads = lambda pool=host_products._threads: (pool()[0], 2)
x, weight = np.ones((1, 1024), np.float32), np.ones((4096, 1024), np.float32)

def compute():
    return int(host_products.linear(x, weight).sum())

if hasattr(os, "fork"):
    child = os.fork()
    if not child:
        threading.Timer(120, os._exit, [1]).start()
        os._exit(0 if compute() == 4096 * 1024 else 1)
    assert os.waitpid(child, 0)[1] == 0

def after_the_end():
    threading.main_thread().join()
    print(compute())

threading.Thread(target=after_the_end).start()
"""


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product is by three threads."""
    pool = ThreadPoolExecutor(3)
    monkeypatch.setattr(host_products, "_threads", lambda: (pool, 3))
    monkeypatch.setattr(host_products, "PART", 1)
    monkeypatch.setattr(host_products, "PACKED_PART", 1)


@pytest.mark.usefixtures("three")
def test_what_is_not_finite_is_quiet_in_every_thread() -> None:
    x = np.ones((1, 64), np.float32)
    weight = np.full((96, 64), np.inf, np.float32)
    weight[:, 0] = -np.inf
    with np.errstate(invalid="ignore"):  # as of a plan; warnings are errors here
        assert np.isnan(host_products.linear(x, weight)).all()
        codes, scales, biases = map(np.array, mx.quantize(mx.random.normal((96, 64)), group_size=32, bits=4))
        scales[:, 0], scales[:, 1] = np.inf, -np.inf
        assert np.isnan(host_products.packed_linear(x, codes, scales, biases, 4, 32, "affine")).all()


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_rows_of_a_weight_than_threads(count: int) -> None:
    x = np.arange(64, dtype=np.float32)[None]
    codes, scales, biases = (np.array(part)[:count] for part in mx.quantize(mx.ones((2, 64)), group_size=32, bits=8))
    found = host_products.packed_linear(x, codes, scales, biases, 8, 32, "affine")
    np.testing.assert_allclose(found, np.full((1, count), x.sum()), rtol=1e-5)
    np.testing.assert_allclose(host_products.linear(x, np.ones((count, 64), np.float32)), found, rtol=1e-5)


def test_after_the_main_thread_and_in_a_forked_process() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LATE]  # Python warns of forks beside threads
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.stdout, done.stderr) == (f"{4096 * 1024}\n", "")
