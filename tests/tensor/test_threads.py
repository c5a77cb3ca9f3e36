"""Building and evaluating from several threads at once: right results, no error, nothing shared by accident."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, features

import numpy as np
import pytest

THREADS = 8


def together(work: Callable[[int], object], count: int = THREADS) -> list[object]:
    """What ``work`` gives in each of ``count`` threads, which start at the same moment."""
    barrier = threading.Barrier(count)

    def start(i: int) -> object:
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def test_each_thread_builds_and_evaluates_its_own() -> None:
    def work(i: int) -> float:
        total = 0.0
        for j in range(30):
            x = LazyTensor.new(np.full((4, 4), float(i + j), np.float32))
            total += (x.matmul(x).sum_all() * 0.5 + 1.0).eval().to_scalar()
        return total

    def want(i: int) -> float:
        return sum(16 * 4 * (i + j) ** 2 * 0.5 + 1 for j in range(30))

    assert together(work) == pytest.approx([want(i) for i in range(THREADS)], rel=1e-6)


def test_all_threads_evaluate_one_graph() -> None:
    for _ in range(30):
        x = LazyTensor.new(np.arange(6, dtype=np.float32).reshape(2, 3))
        shared = (x * 2.0 + 1.0).exp()
        outputs = [shared.sum(1), shared.t().contiguous(), shared.matmul(shared.t())]
        results = together(lambda i, outputs=outputs: outputs[i % 3].eval().numpy())
        want = np.exp(np.arange(6, dtype=np.float32).reshape(2, 3) * 2 + 1)
        for i, got in enumerate(results):
            np.testing.assert_allclose(got, [want.sum(1), want.T, want @ want.T][i % 3], rtol=1e-5)


def test_what_one_thread_records_another_evaluates() -> None:
    recorded = together(lambda i: LazyTensor.new([float(i)]) * 2.0 + 1.0)
    assert [x.eval().to_vec1() for x in recorded] == [[2.0 * i + 1] for i in range(THREADS)]  # type: ignore[attr-defined]
    crossed = together(lambda i: (recorded[i] + recorded[-1 - i]).eval().to_vec1())  # type: ignore[index, operator]
    assert crossed == [[2.0 * (THREADS - 1) + 2]] * THREADS


def test_gradients_of_a_shared_variable() -> None:
    w = Var(np.arange(1, 5, dtype=np.float32))

    def work(i: int) -> list[float]:
        x = Tensor(np.full(4, float(i), np.float32))
        for _ in range(20):
            gradient = ((w * x).sqr().sum_all()).backward()[w].to_vec1()
        return gradient

    assert together(work) == [[2.0 * i * i * v for v in (1, 2, 3, 4)] for i in range(THREADS)]


def test_eager_views_and_writes_of_own_tensors() -> None:
    def work(i: int) -> list[list[float]]:
        t = Tensor(np.zeros((3, 4), np.float32))
        for row in range(3):
            t[row].const_set(float(i))
            t.t()[row] = float(-i)
        return t.to_vec2()

    for i, got in enumerate(together(work)):
        want = np.zeros((3, 4))
        for row in range(3):
            want[row] = i
            want[:, row] = -i
        np.testing.assert_array_equal(got, want)


def test_a_compiled_function_in_all_threads() -> None:
    w = Var([2.0])
    f = mc.compile(lambda x: (x * w).exp().sum_all())
    results = together(lambda i: [f(Tensor([float(i), j / 10])).to_scalar() for j in range(10)])
    for i, got in enumerate(results):
        want = [np.exp(2.0 * i) + np.exp(2 * j / 10) for j in range(10)]
        np.testing.assert_allclose(got, want, rtol=1e-5)  # type: ignore[arg-type]


def test_tracing_in_one_thread_leaves_the_others_alone() -> None:
    tracing, evaluated = threading.Event(), threading.Event()

    def traced(x: Tensor) -> Tensor:
        tracing.set()
        assert evaluated.wait(30)
        return x + 1.0

    def other() -> list[float]:
        assert tracing.wait(30)
        value = (Tensor([1.0]) + 1.0).to_vec1()
        evaluated.set()
        return value

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(mc.compile(traced), Tensor([5.0])), pool.submit(other)
        assert second.result() == [2.0]
        assert first.result().to_vec1() == [6.0]


def test_switches_are_a_threads_own() -> None:
    def work(i: int) -> bool:
        if i % 2:
            with features.disabled("graph"), pytest.raises(mc.Error):
                LazyTensor.new([1.0])
            return True
        return LazyTensor.new([1.0]).eval().to_vec1() == [1.0]

    assert all(together(work))


def test_writes_into_one_tensor_are_not_lost() -> None:
    total, slots = Tensor(np.zeros(4, np.float32)), Tensor(np.zeros(THREADS, np.float32))

    def work(i: int) -> None:
        for _ in range(50):
            total.scatter_add_set(Tensor([i % 4]), Tensor([1.0]), 0)
        slots.slice_set(Tensor([float(i)]), 0, i)

    together(work)
    assert total.to_vec1() == [100.0] * 4
    assert slots.to_vec1() == [float(i) for i in range(THREADS)]


def test_reading_what_another_thread_writes_gives_what_was_there_at_some_time() -> None:
    t = Tensor(np.zeros((64, 64), np.float32))
    wrong: list[object] = []

    def work(i: int) -> None:
        for step in range(100):
            if i == 0:
                t.const_set(float(step))
            elif i == 1:
                t[3] = float(step)
            else:
                values = (t + 0.0).numpy() if i % 2 else t.numpy()
                if values.shape != (64, 64) or not np.isin(values, np.arange(100)).all():
                    wrong.append(values)

    together(work)
    assert not wrong
