"""The part of a graph that an evaluation has to compute, and a key by which an equal one is known again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple

from ..device import Device
from ..dtype import DType
from ..error import NotEvaluatedError
from ..shape import Shape
from .node import GraphNode, by_id, why_no_value
from .operation import Meta, Operation

lock = threading.RLock()
"""Held while nodes are walked or change what they are made of; never while MLX or a user's function runs, but for a
finalizer that evaluates, which is why the thread that has it may take it again."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


class Structure(NamedTuple):
    """Unevaluated nodes between ``leaves``, which have ``values``, and ``roots``, whose values somebody asks for.

    ``nodes`` holds all of them, dependencies first; leaves and roots are places there. ``key`` is equal for two
    structures of the same operations between leaves of the same shapes, dtypes and devices.
    """

    key: Hashable
    device: Device
    nodes: list[GraphNode]
    leaves: list[int]
    roots: list[int]
    values: list[Any]


def survey(wanted: Sequence[GraphNode], given: Collection[GraphNode] = (), any_leaf: bool = False) -> Structure:
    """The structure whose roots are ``wanted`` and every node on the way that somebody else holds.

    ``given`` nodes are leaves although they have no value yet. Raises ``NotEvaluatedError`` for any other leaf without
    a value, unless ``any_leaf`` will do. Takes ``lock``. Whoever calls this must not have nodes in between in a list of
    its own: it would seem to be somebody who holds them.
    """
    with lock:
        return _survey(wanted, given, any_leaf, _OWN_REFERENCES)


# So often a node that is asked for seems to be used less than it is: it counts as held.
_ASKED = 1 << 40


def _survey(wanted: Sequence[GraphNode], given: Collection[GraphNode], any_leaf: bool, own: int) -> Structure:
    # How often a node is used; from when it has its place on, that.
    count = dict.fromkeys(wanted, -_ASKED)
    stack = list(count)
    while stack:
        node = stack.pop()
        if node.value is None and not (given and node in given):
            for source in node.inputs:
                if source in count:
                    count[source] += 1
                else:
                    count[source] = 1
                    stack.append(source)
    order = sorted(count, key=by_id)
    first = order[0].device
    key: list[Hashable] = [first]
    leaves: list[int] = []
    values: list[Any] = []
    roots: list[int] = []
    for place, node in enumerate(order):
        value = node.value
        if value is not None or (given and node in given):
            leaves.append(place)
            values.append(value)
            key.append(node.meta)
            held = count[node] < 0
        elif not node.inputs and node.operation.arity == 0:
            if not any_leaf:
                raise NotEvaluatedError(f"eval: {why_no_value(node)}")
            leaves.append(place)
            values.append(None)
            key.append(node.meta)
            held = count[node] < 0
        else:
            inputs = node.inputs
            key.append(node.operation.token)
            for source in inputs:
                key.append(count[source])
            # Who else refers to it may ask for its value: a tensor, or a node that is not part of this.
            held = _references(node) > count[node] + own
        count[node] = place
        if held:
            roots.append(place)
            key.append(-1)
        if node.device is not first:
            key.append(node.device)
    return Structure(tuple(key), first, order, leaves, roots, values)


_references = sys.getrefcount


def _own_references() -> int:
    """How often ``_survey`` itself refers to a node when it counts: as often as to one that nobody else holds."""
    meta = Meta(Shape(()), DType.F32)

    def node(*sources: GraphNode) -> GraphNode:
        return GraphNode(Operation(), sources, meta, Device.Cpu)

    start = node()
    for own in range(16):
        if len(_survey([node(node(start))], (start,), False, own).roots) == 1:
            return own
    raise AssertionError("reference counts do not tell who holds a node")


_OWN_REFERENCES = _own_references()
