"""From nodes to values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import mlx.core as mx

from ..device import Device
from ..error import NotEvaluatedError
from .node import GraphNode, current_trace, one_thread
from .plans import planned
from .structure import lock


def on_device(device: Device) -> Any:
    """A context in which MLX computes on ``device``; nothing to do for MLX's default one."""
    if device is Device.Cpu and mx.default_device().type is mx.cpu:
        return _HERE
    wanted = device.mlx()
    return _HERE if wanted == mx.default_device() else mx.stream(wanted)


_HERE = nullcontext()


def evaluate(nodes: Sequence[GraphNode]) -> None:
    """Give every node its value, all of a device in one ``mx.eval``.

    Nodes on the way that somebody holds get theirs too. A node that no gradient needs lets its inputs go.
    """
    wanted = [node for node in nodes if node.value is None]
    if not wanted:
        return
    trace = current_trace()
    if trace is not None:
        raise NotEvaluatedError(
            f"eval: a function that {trace.by} is tracing cannot look at values; return them instead"
        )
    for device in {node.device: None for node in wanted}:
        with on_device(device):
            roots, values = lower([node for node in wanted if node.device == device])
            mx.eval(values)
        with lock:
            for node, value in zip(roots, values):
                keep(node, value)


def lower(nodes: Sequence[GraphNode]) -> tuple[list[GraphNode], list[Any]]:
    """These nodes of one device and those on the way that somebody holds, with their arrays, not yet evaluated."""
    structure, known = planned(nodes)
    values = known.plan.run(structure.values)
    return [structure.nodes[place] for place in structure.roots], values


SMALL = 1 << 16
"""Bytes of an eager result up to which nobody waits for it. Waiting puts MLX's worker to sleep, and waking it takes
longer than such a result does (on two x86 cores an operation of 16 floats takes 15 µs waited for, 7 not). Of larger
ones so many could be on their way at once that they would fill the memory."""


def evaluate_one(node: GraphNode) -> None:
    """``evaluate`` for one node, quick where its inputs have their values, as an eager operation's do.

    A small result is on its way when this returns: who reads it waits for it.
    """
    if node.value is not None:
        return None
    arrays = []
    for source in node.inputs:
        if source.value is None:
            return evaluate([node])
        arrays.append(source.value)
    device = node.device.mlx()
    if device == mx.default_device():
        value = node.operation.lower(*arrays)
        _start(value)
    else:
        with mx.stream(device):
            value = node.operation.lower(*arrays)
            _start(value)
    return keep(node, value)


# What Ctrl-C and handlers of other signals raise, between any two steps of Python.
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, TimeoutError)


def evaluate_in_place(node: GraphNode, old: GraphNode) -> None:
    """``evaluate`` for a content that takes the place of its first input's, ``old``.

    If only the tensor and the new node hold ``old``, its array is let go before MLX computes, and MLX writes into its
    memory. Whoever else holds it asks for its value later; where several threads are at work, one of them may be about
    to.
    """
    sources = node.inputs
    if (
        node.value is not None
        or node.tracked
        or not sources
        or sources[0] is not old
        or any(source.value is None for source in sources)
        or sys.getrefcount(old) > _OWN_REFERENCES
        or not one_thread()
    ):
        return evaluate([node])
    with on_device(node.device):
        value = node.operation.lower(*[source.value for source in sources])
        old.value = None
        try:
            mx.eval(value)
        except INTERRUPTIONS:  # the new content is the only one by then
            mx.eval(value)
            old.value = value
            raise
    return keep(node, value)


def _own_references() -> int:
    """How often ``evaluate_in_place`` finds a node referred to that a tensor and one node's inputs hold."""

    def count(sources: tuple[object, ...], old: object) -> int:
        return sys.getrefcount(old)

    tensor = [object()]
    return count((tensor[0],), tensor[0])


_OWN_REFERENCES = _own_references()


def _start(value: Any) -> None:
    if isinstance(value, tuple) or value.nbytes > SMALL:
        mx.eval(value)
    else:
        mx.async_eval(value)  # type: ignore[no-untyped-call]


def keep(node: GraphNode, value: Any) -> None:
    """Store a computed value; a node that no gradient needs lets its inputs go, and so does a variable's."""
    node.value = value
    if not node.tracked or node.variable is not None:
        node.let_go()
