"""Plans for tensors of any shape: found by comparing two traces, and checked for each shape they are used for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..error import Error
from ..graph.node import GraphNode
from .containers import fill
from .program import Program

MOST_SHAPES = 4096
"""How many shapes a plan remembers that it serves."""


class Family:
    """What a compiled function has for arguments of the same structure, ranks and dtypes, whatever their shapes.

    The first two shapes are traced. If both came out as the same operations on the same things, the plan serves other
    shapes too, where the operations' own shape rules take them; else every shape has a plan of its own.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._programs: dict[Any, Program] = {}
        self._general: Program | None = None
        self._different = ""
        self._served: set[Any] = set()

    def state(self) -> str:
        """Whether one plan serves all shapes, and if not, why."""
        if self._general is not None:
            more = f", {len(self._programs) - 1} more for shapes it cannot serve" if len(self._programs) > 1 else ""
            return f"one plan for {len(self._served)} shapes{more}"
        if self._different:
            return f"a plan for each of {len(self._programs)} shapes: {self._different}"
        return "one shape so far; the next one shows whether the plan depends on it"

    def program_for(self, nodes: list[GraphNode], trace: Callable[[], Program]) -> tuple[Program, bool]:
        """The program for arguments like these, and whether it was traced for other shapes."""
        shapes = tuple([node.meta for node in nodes])
        if self._general is not None and shapes in self._served:
            return self._general, True
        program = self._programs.get(shapes)
        if program is not None:
            return program, False
        if self._general is not None and self._serves(self._general, nodes):
            if len(self._served) >= MOST_SHAPES:
                self._served.clear()
            self._served.add(shapes)
            return self._general, True
        program = trace()
        if self._programs and self._general is None and not self._different:
            (other,) = self._programs.values()
            difference = other.replay.difference(program.replay) or _between(other, program)
            if difference is None:
                self._general, self._served = program, {*self._programs, shapes}
                self._programs = {}
                return program, False
            self._different = difference
        self._programs[shapes] = program
        if len(self._programs) > self._most:
            del self._programs[next(iter(self._programs))]
        return program, False

    def _serves(self, program: Program, nodes: list[GraphNode]) -> bool:
        # Two different shapes may still have had something in common that a third has not.
        try:
            return program.replay.fits([node.meta for node in nodes])  # type: ignore[misc]
        except Error:
            return False


def _between(one: Program, other: Program) -> str | None:
    if one.reads != other.reads or one.writes != other.writes or one.keys != other.keys:
        return "it reads or sets other variables, or draws other random numbers"
    if one.tracked != other.tracked or _written(one.results) != _written(other.results):
        return "its results have another structure"
    return None


def _written(structure: Any) -> str:
    return repr(fill(structure, lambda slot: f"{slot.kind.__name__} {slot.index}"))
