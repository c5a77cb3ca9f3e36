"""Reverse mode over nodes: gradients are recorded as nodes too, and evaluated when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

import mlx.core as mx

from ..device import Device
from ..dtype import DType
from ..error import BackwardNotSupportedError
from .fuse import fuse
from .node import GraphNode, Variable, leaf, record, topological_order
from .operation import Meta
from .operations.binary import Add
from .operations.structure import Pick, ToDevice, Vjp
from .structure import lock

_add = Add()


def gradients(output: GraphNode, seed: GraphNode | None = None) -> dict[Variable, GraphNode]:
    """A node for the gradient of ``output`` with respect to every variable it depends on.

    ``seed`` is the gradient of ``output`` itself, by default ones, so that a tensor of several elements
    is differentiated as its sum. Only paths that lead to a variable are walked.
    """
    if not output.tracked:
        return {}
    # Nodes must stay what they are from rewriting on until all gradients are recorded.
    with lock:
        if output.value is None:
            fuse([output])
        return _gradients(output, seed)


def _gradients(output: GraphNode, seed: GraphNode | None) -> dict[Variable, GraphNode]:
    if seed is None:
        seed = _one(output.dtype, output.device) if output.shape == () else _ones(output)
    found: dict[Variable, GraphNode] = {}
    for node, cotangent in _cotangents_at_ends({output: seed}).items():
        variable = node.variable
        assert variable is not None
        earlier = found.get(variable)
        found[variable] = cotangent if earlier is None else record(_add, (earlier, cotangent))
    return found


def gradients_at(seeds: dict[GraphNode, GraphNode], ends: Collection[GraphNode]) -> dict[GraphNode, GraphNode]:
    """A node for the gradient at each of ``ends``, tracked leaves, where ``seeds`` has those of the results.

    An end that no result depends on has none.
    """
    with lock:
        waiting = [node for node in seeds if node.value is None and node.tracked and node not in ends]
        if waiting:
            fuse(waiting)
        del waiting
        return _cotangents_at_ends({node: seed for node, seed in seeds.items() if node.tracked}, ends)


def _cotangents_at_ends(
    cotangents: dict[GraphNode, GraphNode], ends: Collection[GraphNode] = ()
) -> dict[GraphNode, GraphNode]:
    """From the cotangents of some results to those of variables' leaves, and of ``ends``."""
    # The cotangents of an operation's several results, by the result's index.
    parts: dict[GraphNode, dict[int, GraphNode]] = {}
    found: dict[GraphNode, GraphNode] = {}
    for node in reversed(topological_order(list(cotangents), stop=_untracked)):
        if not node.tracked:
            continue
        if isinstance(node.meta, Meta):
            cotangent = cotangents.pop(node, None)
            if cotangent is None:
                continue
            if node.variable is not None or (ends and node in ends):
                found[node] = cotangent
            elif isinstance(node.operation, Pick):
                into = parts.setdefault(node.inputs[0], {})
                index = node.operation.index
                into[index] = record(_add, (into[index], cotangent)) if index in into else cotangent
            else:
                _distribute(node, (cotangent,), (True,), cotangents)
        else:
            slots = parts.pop(node, {})
            if slots:
                given = [slots[i] for i in sorted(slots)]
                _distribute(node, given, tuple(i in slots for i in range(len(node.meta))), cotangents)
    return found


def _ones(output: GraphNode) -> GraphNode:
    return leaf(mx.ones(output.shape, output.dtype.mlx_), output.device)


@lru_cache(64)
def _one(dtype: DType, device: Device) -> GraphNode:
    """The gradient of a loss by itself. Every step of a training starts from it, and making it waits for MLX."""
    return leaf(mx.ones((), dtype.mlx_), device)


def _untracked(node: GraphNode) -> bool:
    return not node.tracked or node.variable is not None


def _distribute(
    node: GraphNode,
    given: Sequence[GraphNode],
    present: tuple[bool, ...],
    cotangents: dict[GraphNode, GraphNode],
) -> None:
    """Add what ``node`` passes on to the cotangents of its inputs."""
    if not node.inputs:
        raise BackwardNotSupportedError(node.operation.name())
    needs = tuple([source.tracked for source in node.inputs])
    vjp = record(Vjp(node.operation, needs, present), (*given, *node.inputs, node), node.device)
    vjp.scope = node.scope
    tracked = [source for source in node.inputs if source.tracked]
    for index, source in enumerate(tracked):
        gradient = record(Pick(index), (vjp,)) if len(tracked) > 1 else vjp
        if source.device != node.device:
            gradient = record(ToDevice(source.device), (gradient,), source.device)
        earlier = cotangents.get(source)
        cotangents[source] = gradient if earlier is None else record(_add, (earlier, gradient))


def explain_missing(output: GraphNode, variable: Variable) -> str:
    """Why ``gradients(output)`` has no entry for ``variable``."""
    leading: set[GraphNode] = set()
    cut = None
    for node in topological_order([output]):
        if node.variable is variable or any(source in leading for source in node.inputs):
            leading.add(node)
            if not node.tracked and any(source.tracked and source in leading for source in node.inputs):
                return f"the path is cut at {node.label()}, which passes no gradient on"
        cut = cut or node.cut
    if cut is not None:
        return f"no path leads to it; one is cut at {cut}, which passes no gradient on"
    return "the loss does not depend on this variable"
