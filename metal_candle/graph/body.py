"""A piece of graph by itself: what it computes of its inputs and what its gradient is, whatever the inputs are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..device import Device
from .differentiate import gradients_at
from .node import GraphNode, placeholder, record
from .operation import Meta, Metas, Operation
from .plans import conditions
from .replay import Replay
from .structure import lock

MOST_BODIES = 256
"""How many bodies are remembered: one for each structure and shapes, so that the blocks of a network share theirs."""


class Step(NamedTuple):
    """An operation of a body: ``sources`` are places among the inputs and the steps before it."""

    operation: Operation
    sources: tuple[int, ...]
    meta: Metas
    device: Device
    scope: str


class Body:
    """Operations between inputs and results, and the plans that compute them and their gradients.

    ``inputs`` are shapes and dtypes, with the devices beside; ``outputs`` are places among inputs and steps.
    """

    def __init__(
        self, inputs: Sequence[Meta], devices: Sequence[Device], steps: Sequence[Step], outputs: Sequence[int]
    ) -> None:
        self.inputs, self.devices, self.steps, self.outputs = inputs, devices, steps, outputs
        self.device = self._at(outputs[0])[1]
        self._replays: dict[Hashable, Replay] = {}

    def _at(self, place: int) -> tuple[Metas, Device]:
        count = len(self.inputs)
        if place < count:
            return self.inputs[place], self.devices[place]
        return self.steps[place - count].meta, self.steps[place - count].device

    def metas(self) -> tuple[Meta, ...]:
        """Shape and dtype of each result."""
        return tuple([self._at(place)[0] for place in self.outputs])  # type: ignore[misc]

    def described(self) -> Iterator[tuple[Step, list[Metas]]]:
        """Each step with what is known of its inputs."""
        for step in self.steps:
            yield step, [self._at(source)[0] for source in step.sources]

    def differentiated(self, needs: Sequence[bool]) -> Iterator[tuple[Step, list[Metas], list[bool]]]:
        """Each step that a gradient passes through, with which of its inputs need one."""
        reached = self._reached(needs)
        for step, metas in self.described():
            marks = [reached[source] for source in step.sources]
            if any(marks) and step.operation.passes_gradient():
                yield step, metas, marks

    def _reached(self, tracked: Sequence[bool]) -> list[bool]:
        reached = list(tracked)
        for step in self.steps:
            reached.append(step.operation.passes_gradient() and any(reached[source] for source in step.sources))
        return reached

    def leading(self, tracked: Sequence[bool]) -> tuple[list[bool], list[bool]]:
        """Through which of the ``tracked`` inputs a gradient passes, and to which results."""
        reached = self._reached(tracked)
        needed = [False] * len(reached)
        for place in self.outputs:
            needed[place] = reached[place]
        for place in range(len(reached) - 1, len(self.inputs) - 1, -1):
            if needed[place]:
                for source in self.steps[place - len(self.inputs)].sources:
                    needed[source] = reached[source]
        return needed[: len(self.inputs)], [reached[place] for place in self.outputs]

    def recorded(self, needs: Sequence[bool]) -> tuple[list[GraphNode], list[GraphNode]]:
        """New nodes for it: placeholders for its inputs, tracked where ``needs`` says, and the results."""
        inputs = [placeholder(*each) for each in zip(self.inputs, self.devices, needs)]
        nodes = list(inputs)
        for step in self.steps:
            sources = tuple([nodes[source] for source in step.sources])
            node = record(step.operation, sources, step.device, step.meta)
            node.scope = step.scope
            nodes.append(node)
        return inputs, [nodes[place] for place in self.outputs]

    def forward(self) -> Replay:
        """What computes the results of the inputs."""
        key = (None, conditions())
        replay = self._replays.get(key)
        if replay is None:
            with lock:
                inputs, outputs = self.recorded([False] * len(self.inputs))
                replay = self._replays[key] = Replay(outputs, inputs, part=True)
        return replay

    def backward(self, needs: tuple[bool, ...], present: tuple[bool, ...]) -> tuple[Replay, list[bool]]:
        """What computes gradients of inputs and cotangents, and for which of those that ``needs`` marks there is one.

        ``present`` says which results have a cotangent.
        """
        key = (needs, present, conditions())
        found = self._replays.get(key)
        if found is None:
            with lock:
                found = self._replays[key] = self._backward(needs, present)
        return found  # type: ignore[return-value]

    def _backward(self, needs: tuple[bool, ...], present: tuple[bool, ...]) -> Any:
        inputs, outputs = self.recorded(needs)
        given = [output for output, has in zip(outputs, present) if has]
        seeds = [placeholder(node.meta, node.device) for node in given]  # type: ignore[arg-type]
        # Nodes in between that are referred to here would seem to be asked for, and not be fused.
        del outputs
        wanted = [node for node, need in zip(inputs, needs) if need]
        gradients = gradients_at(dict(zip(given, seeds)), frozenset(wanted))
        del given
        there = [node in gradients for node in wanted]
        return Replay([gradients[node] for node in wanted if node in gradients], [*inputs, *seeds], part=True), there

    def __repr__(self) -> str:
        return f"{len(self.steps)} operations"


_bodies: OrderedDict[Hashable, Body] = OrderedDict()


def body_of(outputs: Sequence[GraphNode], inside: Sequence[GraphNode], places: Mapping[GraphNode, int]) -> Body:
    """The body of nodes that are ``inside``, dependencies first, between inputs at ``places`` and ``outputs``."""
    at = dict(places)
    key: list[Hashable] = [(node.meta, node.device) for node in places]
    steps = []
    for node in inside:
        sources = tuple([at[source] for source in node.inputs])
        at[node] = len(at)
        steps.append(Step(node.operation, sources, node.meta, node.device, node.scope))
        key += (node.operation.token, sources, node.device)
    results = [at[node] for node in outputs]
    whole = (tuple(key), tuple(results))
    with lock:
        body = _bodies.get(whole)
        if body is None:
            metas: list[Any] = [node.meta for node in places]
            body = Body(metas, [node.device for node in places], steps, results)
            if all(step.operation.is_lasting() for step in steps):
                _bodies[whole] = body
                if len(_bodies) > MOST_BODIES:
                    _bodies.popitem(last=False)
        else:
            _bodies.move_to_end(whole)
    return body
