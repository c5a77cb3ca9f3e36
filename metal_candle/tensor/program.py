"""A traced function: what it reads, what it computes, what it gives and sets."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..device import Device
from ..dtype import DType
from ..graph.evaluate import evaluate, on_device
from ..graph.node import GraphNode, Variable, is_own_leaf, leaf, placeholder, topological_order, tracing
from ..graph.operation import Meta, Operation
from ..graph.operations.random import next_key
from ..graph.replay import Replay
from ..shape import Shape
from .base import TensorBase
from .containers import Slot, fill, note, skeleton
from .grad_store import COMPILED


@dataclass(eq=False)
class Program:
    """One trace of a function, ready to be replayed.

    ``metas`` are the results' shapes and dtypes for the arguments it was traced with, ``asked`` the modules that told
    their training mode.
    """

    replay: Replay
    run: Callable[[list[Any]], list[Any]]
    reads: list[Variable]
    writes: list[Variable]
    keys: int
    results: Any
    tracked: list[bool]
    metas: list[Meta]
    device: Device
    recorded: int
    rules: Counter[str]
    asked: list[weakref.ref[Any]]

    def __call__(self, nodes: list[GraphNode], metas: list[Meta]) -> Any:
        """The function's results for these arguments, which give such ones; variables are set when all is computed."""
        values: list[Any] = [node.value for node in nodes]
        for _ in range(self.keys):
            values.append(next_key())
        for variable in self.reads:
            node = variable.node
            if node.value is None:
                evaluate([node])
            values.append(node.value)
        with on_device(self.device):
            outputs = self.run(values)
            mx.eval(outputs)
        if self.writes:
            for variable, value in zip(self.writes, outputs[len(metas) :]):
                variable.assign(value)

        def wrap(slot: Slot) -> Any:
            index = slot.index
            value = outputs[index]
            if not value.size:
                node = leaf(value, self.device)
            else:
                node = GraphNode(_INPUT, (), metas[index], self.device, value=value)
            if self.tracked[index]:
                node.cut = COMPILED
            return slot.kind._from_node(node)  # type: ignore[attr-defined]

        return fill(self.results, wrap)

    def held(self) -> list[Meta]:
        """What it keeps of tensors from outside: their shapes and dtypes."""
        return [Meta(Shape(value.shape), DType.of(value.dtype)) for value in self.replay.constants()]

    def difference(self, other: Program) -> str | None:
        """What it does otherwise than ``other``; ``None`` if either does what the other does."""
        if self.reads != other.reads or self.writes != other.writes:
            return "it reads or sets other variables"
        if self.keys != other.keys:
            return f"{self.keys} draws of random numbers for one shape, {other.keys} for another"
        different = self.replay.difference(other.replay)
        if different is not None:
            return different
        return None if self._given() == other._given() else "its results have another structure, or other constants"

    def _given(self) -> list[Any]:
        key: list[Any] = [tuple(self.tracked), [meta.dtype for meta in self.metas], self.device]
        note(self.results, key, [])
        return key


_INPUT = Operation.Input


def trace(
    function: Callable[..., Any], name: str, structure: tuple[list[Any], dict[str, Any]], tensors: list[TensorBase]
) -> Program:
    """Run ``function`` on placeholders for ``tensors`` at the slots of ``structure``, its args and kwargs."""
    with tracing(name) as traced:
        arguments = [placeholder(Meta(tensor.shape, tensor.dtype), tensor.device) for tensor in tensors]

        def stand_in(slot: Slot) -> Any:
            return slot.kind._from_node(arguments[slot.index])  # type: ignore[attr-defined]

        args, kwargs = fill(structure, stand_in)
        returned = function(*args, **kwargs)
        results: list[TensorBase] = []
        given = skeleton(returned, results, "the result", traced)
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
        if is_own_leaf(node) and node.variable not in traced.made:
            reads[node.variable] = node  # type: ignore[index]
    inputs = [*arguments, *traced.keys, *reads.values()]
    recorded = len(order)
    del order
    replay = Replay(outputs, inputs)
    # On the CPU mx.compile costs seconds of C++ compiler per shape and the step is no faster (measured). On a GPU it
    # looks at each shape: kernels are chosen by it.
    run = replay.run if device.is_cpu() else mx.compile(replay.run)
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
        recorded,
        traced.rules + replay.rules(),
        list(traced.asked.values()),
    )
