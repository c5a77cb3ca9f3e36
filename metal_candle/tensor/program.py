"""A traced function: what it reads, what it computes, what it gives and sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..device import Device
from ..graph.evaluate import on_device
from ..graph.node import GraphNode, Variable, leaf, placeholder, topological_order, tracing
from ..graph.operation import Meta, Operation
from ..graph.operations.random import next_key
from ..graph.replay import Replay
from ..shape import Shape
from .base import TensorBase
from .containers import Slot, fill, skeleton
from .grad_store import COMPILED


@dataclass
class Program:
    """One trace of a function, ready to be replayed."""

    replay: Replay
    run: Callable[[list[Any]], list[Any]]
    reads: list[Variable]
    writes: list[Variable]
    keys: int
    results: Any
    tracked: list[bool]
    metas: list[Meta]
    device: Device
    labels: dict[str, str]
    recorded: int
    rules: Counter[str]

    def __call__(self, nodes: list[GraphNode], any_shape: bool = False) -> Any:
        """The function's results for these arguments; variables are set when all is computed."""
        values: list[Any] = [node.value for node in nodes]
        for _ in range(self.keys):
            values.append(next_key())
        for variable in self.reads:
            values.append(variable.node.value)
        with on_device(self.device):
            outputs = self.run(values)
            mx.eval(outputs)
        count = len(self.metas)
        if self.writes:
            for variable, value in zip(self.writes, outputs[count:]):
                variable.assign(value)

        def wrap(slot: Slot) -> Any:
            index = slot.index
            value = outputs[index]
            if any_shape or not value.size:
                node = leaf(value, self.device)
            else:
                node = GraphNode(_INPUT, (), self.metas[index], self.device, value=value)
            if self.tracked[index]:
                node.cut = COMPILED
            return slot.kind._from_node(node)  # type: ignore[attr-defined]

        return fill(self.results, wrap)


_INPUT = Operation.Input


def trace(
    function: Callable[..., Any], structure: Any, tensors: list[TensorBase], labels: dict[str, str], shapeless: bool
) -> Program:
    """Run ``function`` on placeholders for ``tensors`` at the slots of ``structure``, its args and kwargs."""
    arguments = [placeholder(Meta(tensor.shape, tensor.dtype), tensor.device) for tensor in tensors]

    def stand_in(slot: Slot) -> Any:
        return slot.kind._from_node(arguments[slot.index])  # type: ignore[attr-defined]

    with tracing() as traced:
        args, kwargs = fill(structure, stand_in)
        returned = function(*args, **kwargs)
        results: list[TensorBase] = []
        given = skeleton(returned, results)
        nodes = [tensor._node for tensor in results]
        written = traced.written
        # What the function no longer holds is nobody's: only results and what was set are asked for.
        del returned, args, kwargs
    outputs = nodes + list(written.values())
    device = outputs[0].device if outputs else Device.default()
    order = topological_order(outputs)
    reads: dict[Variable, GraphNode] = {}
    for node in order:
        # A leaf that is not the variable's own any more was recorded earlier, and keeps the value of its time.
        if node.variable is not None and node.variable.node is node:
            reads[node.variable] = node
    inputs = [*arguments, *traced.keys, *reads.values()]
    recorded = len(order)
    del order
    replay = Replay(outputs, inputs)
    # On the CPU mx.compile costs seconds of C++ compiler per shape and the step is no faster (measured).
    run = replay.run if device.is_cpu() else mx.compile(replay.run, shapeless=shapeless)
    return Program(
        replay,
        run,
        list(reads),
        list(written),
        len(traced.keys),
        given,
        [node.tracked for node in nodes],
        [Meta(Shape(node.shape), node.dtype) for node in nodes],
        device,
        labels,
        recorded,
        traced.rules + replay.rules(),
    )
