"""Reverse mode over nodes: gradients are recorded as nodes too, and evaluated when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx

from ..error import BackwardNotSupportedError
from .node import GraphNode, Variable, leaf, record, topological_order
from .operation import Meta, Operation
from .operations.structure import Pick, Vjp


def gradients(output: GraphNode, seed: GraphNode | None = None) -> dict[Variable, GraphNode]:
    """A node for the gradient of ``output`` with respect to every variable it depends on.

    ``seed`` is the gradient of ``output`` itself, by default ones, so that a tensor of several elements
    is differentiated as its sum. Only paths that lead to a variable are walked.
    """
    if not output.tracked:
        return {}
    if seed is None:
        meta = cast(Meta, output.meta)
        seed = leaf(mx.ones(meta.shape, meta.dtype.mlx_), output.device)
    cotangents: dict[GraphNode, GraphNode] = {output: seed}
    # The cotangents of an operation's several results, by the result's index.
    parts: dict[GraphNode, dict[int, GraphNode]] = {}
    found: dict[Variable, GraphNode] = {}
    order = topological_order([output], stop=lambda node: not node.tracked)
    for node in reversed(order):
        if not node.tracked:
            continue
        if isinstance(node.meta, Meta):
            cotangent = cotangents.pop(node, None)
            if cotangent is None:
                continue
            if node.variable is not None:
                earlier = found.get(node.variable)
                found[node.variable] = cotangent if earlier is None else record(Operation.Add, (earlier, cotangent))
                continue
            if isinstance(node.operation, Pick):
                into = parts.setdefault(node.inputs[0], {})
                index = node.operation.index
                into[index] = record(Operation.Add, (into[index], cotangent)) if index in into else cotangent
                continue
            given, present = [cotangent], (True,)
        else:
            slots = parts.pop(node, {})
            if not slots:
                continue
            given = [slots[i] for i in sorted(slots)]
            present = tuple(i in slots for i in range(len(node.meta)))
        _distribute(node, given, present, cotangents)
    return found


def _distribute(
    node: GraphNode, given: Sequence[GraphNode], present: tuple[bool, ...], cotangents: dict[GraphNode, GraphNode]
) -> None:
    if not node.inputs:
        raise BackwardNotSupportedError(node.operation.name())
    needs = tuple(source.tracked for source in node.inputs)
    vjp = record(Vjp(node.operation, needs, present), (*given, *node.inputs, node))
    index = 0
    for source, need in zip(node.inputs, needs):
        if not need:
            continue
        gradient = record(Pick(index), (vjp,))
        index += 1
        earlier = cotangents.get(source)
        cotangents[source] = gradient if earlier is None else record(Operation.Add, (earlier, gradient))


def explain_missing(output: GraphNode, variable: Variable) -> str:
    """Why ``gradients(output)`` has no entry for ``variable``."""
    for node in topological_order([output]):
        if any(source.tracked and _leads_to(source, variable) for source in node.inputs) and not node.tracked:
            return f"the path is cut at {node.operation.name()} {list(node.shape)}: it passes no gradient on"
    return "the loss does not depend on this variable"


def _leads_to(node: GraphNode, variable: Variable) -> bool:
    return any(other.variable is variable for other in topological_order([node]))
