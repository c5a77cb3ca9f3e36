"""The part of a graph that an evaluation has to compute, and a key by which an equal one is known again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Hashable, Sequence
from typing import Any

from ..device import Device
from ..dtype import DType
from ..error import NotEvaluatedError
from ..shape import Shape
from .node import GraphNode, by_id
from .operation import Meta, Operation

lock = threading.Lock()
"""Held while nodes are walked or change what they are made of; never while MLX or a user's function runs."""


class Structure:
    """Unevaluated nodes between ``leaves``, which have values, and ``roots``, whose values somebody asks for.

    ``nodes`` holds all of them, dependencies first. ``key`` is equal for two structures of the same operations between
    leaves of the same shapes, dtypes and devices. ``references`` counts for each node how often the others use it.
    """

    __slots__ = ("device", "key", "leaves", "nodes", "references", "roots", "values")

    def __init__(
        self,
        key: Hashable,
        device: Device,
        nodes: list[GraphNode],
        leaves: list[int],
        roots: list[int],
        references: dict[GraphNode, int],
        values: list[Any],
    ) -> None:
        self.key, self.device = key, device
        self.nodes, self.leaves, self.roots = nodes, leaves, roots
        self.references = references
        self.values = values


def survey(wanted: Sequence[GraphNode], given: Collection[GraphNode] = ()) -> Structure:
    """The structure whose roots are ``wanted`` and every node on the way that somebody else holds.

    ``given`` nodes are leaves although they have no value yet. Raises ``NotEvaluatedError`` for any other leaf without
    a value. Takes ``lock``.
    """
    with lock:
        return _survey(wanted, given, _OWN_REFERENCES)


def _survey(wanted: Sequence[GraphNode], given: Collection[GraphNode], own: int) -> Structure:
    uses = dict.fromkeys(wanted, 0)
    asked = frozenset(wanted)
    stack = list(uses)
    while stack:
        node = stack.pop()
        if node.value is None and not (given and node in given):
            for source in node.inputs:
                if source in uses:
                    uses[source] += 1
                else:
                    uses[source] = 1
                    stack.append(source)
    order = sorted(uses, key=by_id)
    first = order[0].device
    key: list[Hashable] = []
    note = key.append
    slots: dict[GraphNode, int] = {}
    leaves: list[int] = []
    values: list[Any] = []
    roots: list[int] = []
    for slot, node in enumerate(order):
        slots[node] = slot
        value = node.value
        if value is not None or (given and node in given):
            leaves.append(slot)
            values.append(value)
            note(node.meta)
            if node in asked:
                roots.append(slot)
                note(-1)
        else:
            inputs = node.inputs
            if not inputs and node.operation.arity == 0:
                raise NotEvaluatedError(
                    f"eval: {node} is an argument of a function that compile is tracing; it has no value yet"
                )
            note(node.operation)
            for source in inputs:
                note(slots[source])
            # Who else refers to it may ask for its value: a tensor, or a node that is not part of this.
            if _references(node) > uses[node] + own or node in asked:
                roots.append(slot)
                note(-1)
        if node.device is not first:
            note(node.device)
    note(first)
    return Structure(tuple(key), first, order, leaves, roots, uses, values)


_references = sys.getrefcount


def _own_references() -> int:
    """How often ``_survey`` itself refers to a node when it counts: as often as to one that nobody else holds."""
    meta = Meta(Shape(()), DType.F32)

    def node(*sources: GraphNode) -> GraphNode:
        return GraphNode(Operation(), sources, meta, Device.Cpu)

    start = node()
    for own in range(16):
        if len(_survey([node(node(start))], (start,), own).roots) == 1:
            return own
    raise AssertionError("reference counts do not tell who holds a node")


_OWN_REFERENCES = _own_references()
