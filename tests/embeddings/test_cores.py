"""Work on all cores at once: order, errors, settings, and what it leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from metal_candle import blas, settings
from metal_candle.embeddings import cores
from metal_candle.graph import node
from metal_candle.tensor import Tensor

import numpy as np
import pytest

LONG = 60
"""Seconds after which a thread that does not come is an error."""


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cores, "count", lambda: 2)
    cores._helpers.cache_clear()
    yield
    cores._helpers().shutdown()
    cores._helpers.cache_clear()


def in_both(function: Callable[[int], int]) -> list[int]:
    """``function`` of 0 to 9, of which 0 and 9 are computed at the same time."""
    meeting = threading.Barrier(2)

    def one(item: int) -> int:
        if item in (0, 9):
            meeting.wait(LONG)
        return function(item)

    return cores.on_all_cores(one, range(10))


def test_results_are_in_order_and_two_are_computed_at_once() -> None:
    threads = set()

    def square(item: int) -> int:
        threads.add(threading.current_thread().name)
        return item * item

    assert in_both(square) == [item * item for item in range(10)]
    assert threads == {threading.current_thread().name, "metal-candle-embeddings_0"}
    assert cores.on_all_cores(square, []) == []


def test_settings_of_the_caller_hold_for_all() -> None:
    seen = set()

    def note(item: int) -> int:
        seen.add(settings.KERNELS.value)
        return item

    with settings.KERNELS.override("reference"):
        in_both(note)
    assert seen == {"reference"}


def test_an_error_ends_the_whole_once_nothing_is_under_way() -> None:
    begun, ended = set(), set()
    failed = threading.Event()

    def one(item: int) -> int:
        begun.add(item)
        if item == 9:
            failed.set()
            raise ValueError("nine")
        failed.wait(LONG)
        cores._helpers().submit(int).result(LONG)  # the only helper is through, and so has emptied the queue
        ended.add(item)
        return item

    with pytest.raises(ValueError, match="nine"):
        in_both(one)
    assert begun == {0, 9}
    assert ended == {0}
    assert in_both(lambda item: item) == list(range(10))


def test_an_interrupt_of_the_caller_waits_for_the_helper() -> None:
    main, ended, begun = threading.get_ident(), [], []

    def one(item: int) -> int:
        begun.append(item)
        if threading.get_ident() == main:
            raise KeyboardInterrupt
        ended.append(item)
        return item

    with pytest.raises(KeyboardInterrupt):
        in_both(one)
    assert sorted(ended) == sorted(begun)[1:]


def test_helpers_that_are_busy_are_not_waited_for() -> None:
    busy = threading.Event()
    blocked = cores._helpers().submit(busy.wait, LONG)
    assert cores.on_all_cores(lambda item: -item, range(5)) == [0, -1, -2, -3, -4]
    assert not blocked.done()
    busy.set()


def test_without_threads_the_caller_does_all() -> None:
    cores._helpers().shutdown()  # as at the interpreter's end
    assert cores.on_all_cores(lambda item: -item, range(5)) == [0, -1, -2, -3, -4]


def test_helpers_count_for_no_thread_that_reads_others_tensors() -> None:
    def one(item: int) -> int:
        assert Tensor.new([float(item)]).add(Tensor.new([1.0])).to_vec1() == [item + 1.0]
        return threading.get_ident()

    helper = in_both(one)[9]
    assert helper != threading.get_ident()
    assert threading.get_ident() in node._threads
    assert helper not in node._threads


@pytest.mark.parametrize("calls", [blas._thread_calls, blas._numpy_thread_calls], ids=["MLX", "NumPy"])
def test_products_take_one_thread_until_the_last_block_ends(calls: Callable[[], tuple[Any, Any] | None]) -> None:
    found = calls()
    if found is None:
        pytest.skip("something else than OpenBLAS multiplies")
    get, put = found
    before = get()
    put(2)
    try:
        assert in_both(lambda item: get()) == [1] * 10
        assert get() == 2
        first, second = blas.single(), blas.single()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert get() == 1
        second.__exit__(None, None, None)
        assert get() == 2
        with pytest.raises(ValueError, match="inside"), blas.single():
            raise ValueError("inside")
        assert get() == 2
    finally:
        put(before)


def test_without_openblas_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(blas, "_status", blas.Blas(None, blas.OWN, "as on macOS"))
        patch.setattr(blas, "_calls_of", lambda library: None)
        blas._thread_calls.cache_clear()
        blas._numpy_thread_calls.cache_clear()
        assert not blas.can_be_single()
        assert not blas.numpy_can_be_single()
        with blas.single(), ThreadPoolExecutor(1) as pool:
            assert pool.submit(int).result() == 0
    blas._thread_calls.cache_clear()
    blas._numpy_thread_calls.cache_clear()


def test_numpys_own_openblas_is_found() -> None:
    built_with = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if "openblas" not in built_with:
        pytest.skip(f"NumPy multiplies with {built_with}")
    assert blas.numpy_can_be_single()
