"""From nodes to values: a plan of MLX calls, run once for an evaluation or many times for a replay."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import mlx.core as mx

from ..device import Device
from ..error import NotEvaluatedError
from .node import GraphNode, current_trace, topological_order


class Plan:
    """The calls that compute ``outputs`` from ``inputs``, in order, with the last use of each result.

    A result is let go after its last use, so that MLX can reuse its memory.
    """

    def __init__(self, outputs: Sequence[GraphNode], inputs: Sequence[GraphNode] = ()) -> None:
        given = set(inputs)
        order = topological_order(outputs, stop=lambda node: node in given or node.value is not None)
        self._slots = {node: slot for slot, node in enumerate(order)}
        self._constants = [
            (self._slots[node], node.value) for node in order if node.value is not None and node not in given
        ]
        self._inputs = [self._slots.get(node) for node in inputs]
        self._outputs = [self._slots[node] for node in outputs]
        self.nodes = [node for node in order if node.value is None and node not in given]
        for node in self.nodes:
            if not node.inputs and node.operation.arity == 0:
                raise NotEvaluatedError(
                    f"eval: {node} is an argument of a function that compile is tracing; it has no value yet"
                )
        last: dict[int, int] = {}
        for step, node in enumerate(self.nodes):
            for source in node.inputs:
                last[self._slots[source]] = step
        keep = set(self._outputs)
        freed: list[list[int]] = [[] for _ in self.nodes]
        for slot, step in last.items():
            if slot not in keep:
                freed[step].append(slot)
        self._steps = [
            (node.operation.lower, [self._slots[source] for source in node.inputs], self._slots[node], freed[step])
            for step, node in enumerate(self.nodes)
        ]
        self._size = len(order)

    def run(self, values: Sequence[Any] = ()) -> list[Any]:
        """The outputs' arrays, not yet evaluated by MLX, for these values of the inputs."""
        table: list[Any] = [None] * self._size
        for slot, value in self._constants:
            table[slot] = value
        for index, value in zip(self._inputs, values):
            if index is not None:
                table[index] = value
        for lower, sources, slot, freed in self._steps:
            table[slot] = lower(*[table[source] for source in sources])
            for done in freed:
                table[done] = None
        return [table[slot] for slot in self._outputs]


def on_device(device: Device) -> Any:
    """A context in which MLX computes on ``device``; nothing to do for MLX's default one."""
    wanted = device.mlx()
    return nullcontext() if wanted == mx.default_device() else mx.stream(wanted)


def evaluate(nodes: Sequence[GraphNode]) -> None:
    """Give every node its value, all in one ``mx.eval``.

    Nodes on the way that somebody holds keep theirs too. A node that no gradient needs lets its inputs go.
    """
    if current_trace() is not None:
        raise NotEvaluatedError(
            "eval: a function that compile is tracing cannot look at values; return them instead"
        )
    wanted = [node for node in nodes if node.value is None]
    if not wanted:
        return
    for device in {node.device: None for node in wanted}:
        own = [node for node in wanted if node.device == device]
        order = topological_order(own, stop=lambda node: node.value is not None)
        held = [node for node in order if node.value is None and (node.is_held() or node in own)]
        with on_device(device):
            values = Plan(held).run()
            mx.eval(values)
        for node, value in zip(held, values):
            node.value = value
        for node in held:
            if not node.tracked:
                node.inputs = ()
