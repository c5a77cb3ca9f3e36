"""From nodes to values: a plan of MLX calls, run once for an evaluation or many times for a replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, cast

import mlx.core as mx

from ..device import Device
from ..error import NotEvaluatedError
from .node import GraphNode, current_trace, unevaluated_order
from .operation import Arrays
from .operations.structure import Pick, Vjp

_first = itemgetter(0)


class Plan:
    """The calls that compute ``outputs`` from ``inputs``, in order, with the last use of each result.

    A result is let go after its last use, so that MLX can reuse its memory.
    """

    def __init__(self, outputs: Sequence[GraphNode], inputs: Sequence[GraphNode] = ()) -> None:
        given = set(inputs)
        order = unevaluated_order(outputs, given)
        slots = {node: slot for slot, node in enumerate(order)}
        self._size = len(order)
        self._inputs = [slots.get(node) for node in inputs]
        self._outputs = [slots[node] for node in outputs]
        self._constants: list[tuple[int, Arrays]] = []
        self.nodes: list[GraphNode] = []
        for slot, node in enumerate(order):
            if node in given:
                continue
            if node.value is not None:
                self._constants.append((slot, node.value))
                continue
            if not node.inputs and node.operation.arity == 0:
                raise NotEvaluatedError(
                    f"eval: {node} is an argument of a function that compile is tracing; it has no value yet"
                )
            self.nodes.append(node)
        device = outputs[0].device if outputs else None
        # What a gradient in this plan likes to find again of its operation, beside the result, has its own slot.
        saved = {}
        for node in self.nodes:
            if isinstance(node.operation, Vjp):
                output = node.inputs[-1]
                if node.operation.operation.lower_and_save is not None and output.value is None and output not in given:
                    saved[output] = self._size
                    self._size += 1
        used = set(self._outputs)
        slot_of = slots.__getitem__
        self._steps: list[tuple[Callable[..., Any], list[int], int, list[int]]] = []
        for node in reversed(self.nodes):
            lower: Callable[..., Any] = node.operation.lower
            slot = slots[node]
            if node in saved:
                lower = cast("Callable[..., Any]", node.operation.lower_and_save)
                self._steps.append((_first, [saved[node]], slot, [] if saved[node] in used else [saved[node]]))
                slot = saved[node]
            if node.device is not device and node.device != device:
                lower = _Elsewhere(node.device, lower)
            sources = list(map(slot_of, node.inputs))
            if saved and isinstance(node.operation, Vjp) and node.inputs[-1] in saved:
                sources[-1] = saved[node.inputs[-1]]
            done = []
            for source in sources:
                if source not in used:
                    used.add(source)
                    done.append(source)
            self._steps.append((lower, sources, slot, done))
        self._steps.reverse()

    def run(self, values: Sequence[Any] = ()) -> list[Any]:
        """The outputs' arrays, not yet evaluated by MLX, for these values of the inputs."""
        table: list[Any] = [None] * self._size
        for slot, value in self._constants:
            table[slot] = value
        for index, value in zip(self._inputs, values):
            if index is not None:
                table[index] = value
        for lower, sources, slot, done in self._steps:
            table[slot] = lower(*[table[source] for source in sources])
            for last in done:
                table[last] = None
        return [table[slot] for slot in self._outputs]


class _Elsewhere:
    """A call on another device than the plan's outputs are on."""

    def __init__(self, device: Device, lower: Callable[..., Any]) -> None:
        self._device, self._lower = device, lower

    def __call__(self, *arrays: Any) -> Any:
        with mx.stream(self._device.mlx()):
            return self._lower(*arrays)


def on_device(device: Device) -> Any:
    """A context in which MLX computes on ``device``; nothing to do for MLX's default one."""
    wanted = device.mlx()
    return nullcontext() if wanted == mx.default_device() else mx.stream(wanted)


def evaluate(nodes: Sequence[GraphNode]) -> None:
    """Give every node its value, all of a device in one ``mx.eval``.

    Nodes on the way that somebody holds keep theirs too. A node that no gradient needs lets its inputs go.
    """
    wanted = [node for node in nodes if node.value is None]
    if not wanted:
        return
    if current_trace() is not None:
        raise NotEvaluatedError("eval: a function that compile is tracing cannot look at values; return them instead")
    if len(wanted) == 1 and wanted[0].inputs and all(source.value is not None for source in wanted[0].inputs):
        # An eager operation: nothing to plan.
        node = wanted[0]
        with on_device(node.device):
            value = node.operation.lower(*[source.value for source in node.inputs])
            mx.eval(value)
        _keep(node, value)
        return
    for device in {node.device: None for node in wanted}:
        own = {node: None for node in wanted if node.device == device}
        own.update((node.inputs[0], None) for node in list(own) if _shares_a_result(node))
        held = [node for node in unevaluated_order(list(own)) if node.value is None and (node in own or node.is_held())]
        with on_device(device):
            values = Plan(held).run()
            mx.eval(values)
        for node, value in zip(held, values):
            _keep(node, value)


def _shares_a_result(node: GraphNode) -> bool:
    """Whether it picks one of several results whose others somebody may yet ask for."""
    return isinstance(node.operation, Pick) and not isinstance(node.inputs[0].operation, Vjp)


def _keep(node: GraphNode, value: Any) -> None:
    node.value = value
    if not node.tracked:
        node.let_go()
