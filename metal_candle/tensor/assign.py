"""Several variables set at once, from what was recorded for them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from ..device import Device
from ..error import ShapeMismatchError
from ..graph.evaluate import INTERRUPTIONS, keep, lower, on_device
from ..graph.node import GraphNode, current_trace, one_thread, record
from ..graph.operation import Meta
from ..graph.operations.structure import Pick
from ..graph.structure import lock
from .eager import CellTensor

Results = Sequence[tuple[GraphNode, Sequence[CellTensor]]]
"""A node and the variables that take its results, in order."""


def set_all(results: Results, others: Sequence[GraphNode] = ()) -> None:
    """Set variables to what nodes give, and compute ``others`` with them, all in one evaluation.

    The nodes may depend on the variables' present values, which they all see, and on what is not computed yet. A
    value that nobody but its variable and these nodes hold is let go before MLX computes, which then writes into its
    memory. Should MLX fail in the middle, such a variable has no value; Ctrl-C there finishes the step first.

    While ``compile`` traces, the variables take the nodes, to be evaluated with the rest. Raises
    ``ShapeMismatchError`` for a result of another shape or dtype than its variable's, before anything is set.
    """
    for node, cells in results:
        metas = node.meta if isinstance(node.meta, tuple) and not isinstance(node.meta, Meta) else (node.meta,)
        for meta, cell in zip(metas, cells, strict=True):
            if meta != cell._node.meta:
                raise ShapeMismatchError(f"set: got {meta} for a variable of {cell._node.meta}")
    if current_trace() is not None:
        for node, cells in results:
            for index, cell in enumerate(cells):
                part = node if isinstance(node.meta, Meta) else record(Pick(index), (node,))
                cell._variable.assign_node(part)
        return
    cells = [cell for _, cells in results for cell in cells]
    lowered: dict[Device, tuple[list[GraphNode], list[Any]]] = {}
    try:
        _evaluate([*(node for node, _ in results), *others], cells, lowered)
        _assign(results)
    except INTERRUPTIONS:
        # Raised as soon as MLX has computed, and by then the new values are the only ones: the step is finished first.
        if lowered:
            _evaluate([*(node for node, _ in results), *others], cells, lowered)
            _assign(results)
        raise


def _assign(results: Results) -> None:
    for node, cells in results:
        values = node.value if isinstance(node.value, tuple) else (node.value,)
        for value, cell in zip(values, cells):
            cell._variable.assign(value)  # type: ignore[arg-type]


def _evaluate(
    nodes: Sequence[GraphNode],
    cells: Sequence[CellTensor],
    lowered: dict[Device, tuple[list[GraphNode], list[Any]]],
) -> None:
    """``evaluate``, after which the cells' contents are replaced; may be done again with the same ``lowered``."""
    wanted = [node for node in nodes if node.value is None]
    for device in {node.device: None for node in wanted}:
        with on_device(device):
            if device not in lowered:
                lowered[device] = lower([node for node in wanted if node.device == device])
            roots, values = lowered[device]
            if one_thread():  # another thread may be about to ask for one of the old values
                _let_go(cell for cell in cells if cell.device == device)
            mx.eval(values)
        with lock:
            for node, value in zip(roots, values):
                keep(node, value)


def _let_go(cells: Iterable[CellTensor]) -> None:
    """Let the old values go of cells whose node only the cell and one recorded node refer to."""
    for cell in cells:
        node = cell._variable._node
        if sys.getrefcount(node) <= _OWN_REFERENCES:
            node.value = None


def _own_references() -> int:
    """How often ``_let_go`` finds a node referred to that a variable and one node's inputs hold."""

    class Cell:
        node = object()

    inputs = (Cell.node,)
    for cell in [Cell]:
        node = cell.node
        return sys.getrefcount(node) if inputs else 0
    raise AssertionError


_OWN_REFERENCES = _own_references()
