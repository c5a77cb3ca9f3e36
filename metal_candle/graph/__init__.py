"""The graph, as metal-candle's module ``graph`` offers it. Names are resolved on first use.

Lazy tensors and executors belong to the layer above and are found by name, so that nothing here imports upward.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "ComputationGraph": "metal_candle.graph.graph",
    "GraphNode": "metal_candle.graph.node",
    "NodeData": "metal_candle.graph.node_data",
    "NodeId": "metal_candle.graph.node_data",
    "Operation": "metal_candle.graph.operation",
    "scope": "metal_candle.graph.scopes",
    "AsyncExecutor": "metal_candle.tensor.executor",
    "AsyncGraphExecutor": "metal_candle.tensor.executor",
    "Evaluation": "metal_candle.tensor.evaluation",
    "eval_all_async": "metal_candle.tensor.executor",
    "LazyTensor": "metal_candle.tensor.lazy",
    "eval_all": "metal_candle.tensor.lazy",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Operation":
        importlib.import_module("metal_candle.graph.operations")  # fills Operation with its records
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
