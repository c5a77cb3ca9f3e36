"""A case that ``graph.py`` measures, and the sides that compute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, eval_all, features
from metal_candle.graph.node import GraphNode

import mlx.core as mx
from mlx.utils import tree_map

# How far results may differ, of the largest: float32 sums in other orders, in up to sixteen layers, and exponentials by
# approximation.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One computation. Each of ``sides`` ends with its results computed and returns them.

    ``build`` makes the MLX arrays of the raw side, ``record`` the nodes of the lazy side, both before anything is
    computed; ``before`` are nodes that are rewritten earlier, as a loss is before its gradients are recorded.
    """

    group: str
    label: str
    sides: dict[str, Callable[[], Any]]
    build: Callable[[], Any]
    record: Callable[[], list[GraphNode]]
    before: Callable[[], list[GraphNode]] = list
    within: dict[str, Callable[[], AbstractContextManager[object]]] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    def context(self, side: str) -> Callable[[], AbstractContextManager[object]]:
        """What a side runs in."""
        if side == "unrewritten":
            return partial(features.disabled, "rewrite")
        return self.within.get(side, nullcontext)


def arrays(results: Any) -> list[mx.array]:
    """The values of a side's results."""
    leaves = results if isinstance(results, (list, tuple)) else [results]
    return [leaf if isinstance(leaf, mx.array) else leaf.mlx() for leaf in leaves]


def evaluated(results: Any) -> Any:
    """Lazy results, computed."""
    return eval_all(results) if isinstance(results, list) else results.eval()


def waited(results: Any) -> Any:
    """Eager results; small ones may still be on their way."""
    mx.eval(arrays(results))
    return results


@contextmanager
def each_waited_for() -> Iterator[None]:
    """Eager operations wait for small results too, as a program does that reads each one."""
    with mock.patch("metal_candle.graph.evaluate.SMALL", -1):
        yield


def forward(group: str, label: str, raw: Callable[..., Any], ours: Callable[..., Any], x: Any, weights: Any) -> Case:
    """A case of one function of inputs and weights, as MLX and as tensor operations; arrays are shared, not copied.

    What is compiled takes the inputs as its argument and finds the weights outside, as a model does.
    """
    mx.eval(x, weights)
    lazy_x, lazy_weights = tree_map(LazyTensor.from_mlx, x), tree_map(LazyTensor.from_mlx, weights)
    eager_x, eager_weights = tree_map(Tensor.from_mlx, x), tree_map(Tensor.from_mlx, weights)
    compiled = mc.compile(lambda inputs: ours(inputs, eager_weights))

    def run_raw() -> Any:
        results = raw(x, weights)
        mx.eval(results)
        return results

    def lazy() -> Any:
        return evaluated(ours(lazy_x, lazy_weights))

    sides: dict[str, Callable[[], Any]] = {
        "raw": run_raw,
        "unrewritten": lazy,
        "lazy": lazy,
        "compiled": lambda: compiled(eager_x),
        "eager": lambda: waited(ours(eager_x, eager_weights)),
    }

    def record() -> list[GraphNode]:
        results = ours(lazy_x, lazy_weights)
        return [result._node for result in (results if isinstance(results, list) else [results])]

    return Case(group, label, sides, lambda: raw(x, weights), record)
