"""From nodes to values: a plan of MLX calls, run once for an evaluation or many times for a replay."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, cast

import mlx.core as mx

from ..device import Device
from ..error import NotEvaluatedError
from .node import GraphNode, current_trace, one_thread, unevaluated_order
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
                raise _placeholder(node)
            self.nodes.append(node)
        device = outputs[0].device if outputs else None
        # What a gradient in this plan likes to find again of its operation, beside the result, has its own slot.
        saved = {}
        for output in _saving(order, given):
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
    for device in {node.device: None for node in wanted}:
        with on_device(device):
            held = lower([node for node in wanted if node.device == device])
            mx.eval(list(held.values()))
        for node, value in held.items():
            keep(node, value)


def lower(nodes: Sequence[GraphNode]) -> dict[GraphNode, Any]:
    """The arrays, not yet evaluated by MLX, of these nodes of one device, and of nodes on the way that somebody holds.

    What a ``Plan`` does for many runs, for one.
    """
    device, own = nodes[0].device, set(nodes)
    own.update(node.inputs[0] for node in nodes if _shares_a_result(node))
    order = unevaluated_order(list(own))
    values: dict[GraphNode, Any] = {}
    held: dict[GraphNode, Any] = {}
    saving = _saving(order)
    saved: dict[GraphNode, Any] = {}
    value_of = values.__getitem__
    for node in order:
        value = node.value
        if value is None:
            inputs = node.inputs
            if not inputs:
                value = _without_inputs(node)
            elif saving or node.device is not device:
                value = _lower_specially(node, device, value_of, saving, saved)
            else:
                value = node.operation.lower(*map(value_of, inputs))
            if node in own or (node.handle is not None and node.handle() is not None):
                held[node] = value
        values[node] = value
    return held


def _lower_specially(
    node: GraphNode,
    device: Device,
    value_of: Callable[[GraphNode], Any],
    saving: Collection[GraphNode],
    saved: dict[GraphNode, Any],
) -> Any:
    """A node's array where it is on another device than the rest, or a gradient likes to find more than results."""
    operation, arrays = node.operation, list(map(value_of, node.inputs))
    call: Callable[..., Any] = operation.lower
    if node in saving:
        call = cast("Callable[..., Any]", operation.lower_and_save)
    if node.device != device:
        call = _Elsewhere(node.device, call)
    if type(operation) is Vjp and node.inputs[-1] in saved:
        arrays[-1] = saved[node.inputs[-1]]
    value = call(*arrays)
    if node in saving:
        saved[node] = value
        return value[0]
    return value


def _without_inputs(node: GraphNode) -> Any:
    """The array of a node that had no value, and then no inputs: another thread has evaluated it meanwhile."""
    if node.value is None:
        raise _placeholder(node)
    return node.value


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
        mx.eval(value)
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


def _shares_a_result(node: GraphNode) -> bool:
    """Whether it picks one of several results whose others somebody may yet ask for."""
    return isinstance(node.operation, Pick) and not isinstance(node.inputs[0].operation, Vjp)


def keep(node: GraphNode, value: Any) -> None:
    """Store a computed value; a node that no gradient needs lets its inputs go."""
    node.value = value
    if not node.tracked:
        node.let_go()


def _placeholder(node: GraphNode) -> NotEvaluatedError:
    return NotEvaluatedError(f"eval: {node} is an argument of a function that compile is tracing; it has no value yet")


def _saving(order: Sequence[GraphNode], given: Collection[GraphNode] = ()) -> set[GraphNode]:
    """The nodes to be computed whose gradient is in ``order`` and likes to find more again than the result."""
    saving = set()
    for node in order:
        operation = node.operation
        if type(operation) is Vjp and operation.operation.lower_and_save is not None and node.value is None:
            output = node.inputs[-1]
            if output.value is None and output not in given:
                saving.add(output)
    return saving
