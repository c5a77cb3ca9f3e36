"""Graphs of 100,000 operations, deep and wide, and 10,000 training steps: no recursion, linear time, flat memory."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var
from metal_candle.graph import ComputationGraph
from metal_candle.graph.node import GraphNode

import mlx.core as mx
import numpy as np
import pytest

MANY = 100_000


def deep(start: LazyTensor, count: int) -> LazyTensor:
    x = start
    for _ in range(count):
        x = x + 1e-5
    return x


def wide(start: LazyTensor, count: int) -> LazyTensor:
    """``count`` operations on one tensor, joined by a tree of sums."""
    layer = [start * (i % 7) for i in range(count)]
    while len(layer) > 1:
        layer = [layer[i] + layer[i + 1] if i + 1 < len(layer) else layer[i] for i in range(0, len(layer), 2)]
    return layer[0]


def nodes_alive() -> int:
    gc.collect()
    return sum(type(thing) is GraphNode for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("build", [deep, wide])
def test_a_hundred_thousand_operations(build: Callable[[LazyTensor, int], LazyTensor]) -> None:
    assert sys.getrecursionlimit() <= 10_000, "a raised limit would hide recursion"
    before = nodes_alive()
    w = Var([1.0, 2.0])
    y = build(LazyTensor.from_tensor(w), MANY)
    assert y.graph_size() > MANY
    summary = repr(y)
    assert str(y.graph_size()) in summary
    assert len(summary) < 500
    graph = ComputationGraph(y)
    assert len(graph) == y.graph_size()
    assert len(graph.topological_order()) == len(graph)
    for picture in (graph.explain(), graph.to_dot(), graph.to_mermaid()):
        assert f"{len(graph):,} nodes in all" in picture
        assert len(picture) < 10_000, "a summary, not a line per node"
    factor = 1.0 if build is deep else sum(i % 7 for i in range(MANY))
    shift = 1e-5 * MANY if build is deep else 0.0
    gradient = y.sum_all().backward()[w]
    np.testing.assert_allclose(gradient.numpy(), [factor] * 2, rtol=1e-5)
    # 100,000 roundings of float32, each of half a unit at most, all to the same side at worst.
    np.testing.assert_allclose(y.numpy(), w.numpy() * factor + shift, rtol=MANY * 2**-24)
    del y, graph, gradient, w
    assert nodes_alive() - before < 100


@pytest.mark.slow
def test_time_and_memory_are_linear_in_size() -> None:
    """Counted, not timed: how many Python calls ten times the graph takes."""

    def calls(count: int) -> int:
        seen = 0

        def profile(frame: Any, event: str, argument: Any) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")

        w = Var([1.0])
        sys.setprofile(profile)
        try:
            y = deep(LazyTensor.from_tensor(w), count)
            y.backward()
        finally:
            sys.setprofile(None)
        return seen

    small, large = calls(300), calls(3000)
    assert large < 11 * small


@pytest.mark.slow
def test_memory_is_flat_over_training_steps() -> None:
    w, b = Var(np.ones((8, 8), np.float32)), Var(np.zeros(8, np.float32))
    x = Tensor(np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32))

    def step(lazy: bool) -> None:
        start = LazyTensor.from_tensor(x) if lazy else x
        weight, bias = (LazyTensor.from_tensor(v) if lazy else v for v in (w, b))
        y = start.matmul(weight.t()).broadcast_add(bias)
        grads = (y * y).mean_all().backward()
        for variable in (w, b):
            variable.set(variable - grads[variable] * 1e-3)

    def measure() -> tuple[int, int, int]:
        alive = nodes_alive()
        return alive, mx.get_active_memory(), len(gc.get_objects())

    for _ in range(50):
        step(True)
        step(False)
    nodes, active, objects = measure()
    for i in range(10_000):
        step(i % 2 == 0)
    later = measure()
    assert later[0] <= nodes + 5
    assert later[1] <= active + 10_000
    assert later[2] <= objects + 1_000


def test_a_deep_graph_of_joins_and_views_is_freed() -> None:
    before = nodes_alive()
    x = LazyTensor.new(np.ones((2, 2), np.float32))
    for _ in range(2000):
        x = LazyTensor.cat([x, x], 0).narrow(0, 1, 2).t()
    assert x.eval().to_vec2() == [[1.0, 1.0], [1.0, 1.0]]
    del x
    assert nodes_alive() - before < 20
    assert mc.eval_all([]) == []
