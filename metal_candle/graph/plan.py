"""A plan: the MLX calls that compute a graph's roots from its leaves, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, cast

import mlx.core as mx

from ..device import Device
from .operations.structure import Vjp
from .term import Term, TermGraph

# From how many runs on a plan is turned into a Python function: that takes 15 us a step once, and saves 0.2 each time.
RUNS_BEFORE_CODE = 4
# Python's compiler takes time and memory out of proportion for longer functions.
LONGEST_CODE = 4000

Step = tuple[Callable[..., Any], tuple[int, ...], int, tuple[int, ...]]


class Plan:
    """The calls of a graph, each with the slots of its inputs, of its result, and of what is used for the last time.

    A result is let go after its last use, so that MLX can reuse its memory.
    """

    def __init__(self, graph: TermGraph, device: Device) -> None:
        slots = {term: slot for slot, term in enumerate(graph.order)}
        self.size = len(slots)
        self.inputs: list[int | None] = [slots.get(leaf) for leaf in graph.leaves]
        self.outputs = [slots[root] for root in graph.roots]
        terms = [term for term in graph.order if term.operation is not None]
        # What a gradient of this graph likes to find again of its operation, beside the result, has its own slot.
        saved: dict[Term, int] = {}
        for output in _saving(terms):
            saved[output] = self.size
            self.size += 1
        self.steps = self._steps(terms, slots, saved, device)
        self.runs = 0
        self.operations = [term.operation for term in terms]
        self._code: Callable[[Sequence[Any]], list[Any]] | None = None

    def _steps(self, terms: list[Term], slots: dict[Term, int], saved: dict[Term, int], device: Device) -> list[Step]:
        steps: list[Step] = []
        used = set(self.outputs)
        for term in reversed(terms):
            operation = term.operation
            lower: Callable[..., Any] = operation.lowering(*[source.meta for source in term.inputs])  # type: ignore[union-attr]
            slot = slots[term]
            if term in saved:
                lower = cast("Callable[..., Any]", operation.lower_and_save)  # type: ignore[union-attr]
                whole = saved[term]
                steps.append((_first, (whole,), slot, () if whole in used else (whole,)))
                slot = whole
            if term.device is not device and term.device != device:
                lower = _Elsewhere(term.device, lower)
            sources = [slots[source] for source in term.inputs]
            if isinstance(operation, Vjp) and _is_saved_by(term.inputs[-1], operation, saved):
                sources[-1] = saved[term.inputs[-1]]
            done = tuple(dict.fromkeys(source for source in sources if source not in used))
            used.update(done)
            steps.append((lower, tuple(sources), slot, done))
        steps.reverse()
        return steps

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The roots' arrays, not yet evaluated by MLX, for these values of the leaves."""
        if self._code is not None:
            return self._code(values)
        self.runs += 1
        if self.runs >= RUNS_BEFORE_CODE and len(self.steps) <= LONGEST_CODE:
            self._code = self.as_function()
            return self._code(values)
        table: list[Any] = [None] * self.size
        for index, value in zip(self.inputs, values):
            if index is not None:
                table[index] = value
        for lower, sources, slot, done in self.steps:
            table[slot] = lower(*[table[source] for source in sources])
            for last in done:
                table[last] = None
        return [table[slot] for slot in self.outputs]

    def as_function(self) -> Callable[[Sequence[Any]], list[Any]]:
        """``run`` as straight-line Python, where a step costs little more than its call."""
        lines = [f"def run(values, {', '.join(f'f{i}=f{i}' for i in range(len(self.steps)))}):"]
        for i, slot in enumerate(self.inputs):
            if slot is not None:
                lines.append(f"  v{slot} = values[{i}]")
        for i, (_, sources, slot, done) in enumerate(self.steps):
            lines.append(f"  v{slot} = f{i}({', '.join(f'v{source}' for source in sources)})")
            if done:
                lines.append(f"  del {', '.join(f'v{last}' for last in done)}")
        lines.append(f"  return [{', '.join(f'v{slot}' for slot in self.outputs)}]")
        names: dict[str, Any] = {f"f{i}": step[0] for i, step in enumerate(self.steps)}
        exec(compile("\n".join(lines), f"<plan of {len(self.steps)} steps>", "exec"), names)  # nosec: our own text
        return cast("Callable[[Sequence[Any]], list[Any]]", names["run"])


_first = itemgetter(0)


class _Elsewhere:
    """A call on another device than the plan's results are on."""

    def __init__(self, device: Device, lower: Callable[..., Any]) -> None:
        self._device, self._lower = device, lower

    def __call__(self, *arrays: Any) -> Any:
        with mx.stream(self._device.mlx()):
            return self._lower(*arrays)


def _is_saved_by(output: Term, gradient: Vjp, saved: Mapping[Term, int]) -> bool:
    # A rule may have put it where another operation's result was, whose gradient knows nothing of what it saves.
    return output in saved and output.operation == gradient.operation


def _saving(terms: Sequence[Term]) -> dict[Term, None]:
    """The terms whose gradient is among ``terms`` and likes to find more again than the result."""
    saving: dict[Term, None] = {}
    for term in terms:
        operation = term.operation
        if type(operation) is Vjp and operation.operation.lower_and_save is not None:
            output = term.inputs[-1]
            # A rule may compute the result by another operation; the gradient then makes do with the result.
            if output.operation == operation.operation and output.operation is not None:
                saving[output] = None
    return saving
