"""Gradient checkpointing: the backward pass computes a function again instead of keeping what it went through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..error import ArgumentTypeError, Error
from ..error.text import described
from ..graph.body import body_of
from ..graph.node import GraphNode, Trace, Variable, next_id, placeholder, record, topological_order, tracing_part
from ..graph.operation import Meta
from ..graph.operations.checkpoint import Checkpoint
from ..graph.operations.random import random_key
from ..graph.operations.structure import Detach, Pick
from ..tensor.base import TensorBase
from ..tensor.containers import Slot, fill, skeleton
from ..tensor.eager import CellTensor

R = TypeVar("R")
_NAME = "checkpoint"


def checkpoint(fn: Callable[..., R]) -> Callable[..., R]:
    """``fn`` with a smaller memory: of a call the arguments are kept for the gradient, and nothing in between.

    The gradient computes the call again, with the same random numbers, and reaches arguments, variables and whatever
    else ``fn`` takes from outside. Results and gradients are those of ``fn``. Eager tensors give eager results, lazy
    ones lazy; it works inside ``compile``, and inside another checkpoint. What ``fn`` records becomes one operation of
    the graph, which is rewritten by itself: nothing is fused across its border. ``fn`` is a function or a module; it
    takes tensors, also in lists, tuples, dicts and dataclasses. It runs once per call, as a function that ``compile``
    traces: it cannot look at values. A variable that it sets has the new value when the call returns.

    Raises ``ArgumentTypeError`` for what is no function; a call raises ``Error`` for results that are neither tensors
    nor such containers and for a variable that ``fn`` uses after it has set it, whose gradient would be lost, and
    ``NotEvaluatedError`` where ``fn`` looks at a value.

    Chen et al. 2016, https://arxiv.org/abs/1604.06174; ``mx.checkpoint``, ``torch.utils.checkpoint``.
    """
    if not callable(fn):
        raise ArgumentTypeError(f"checkpoint: got {described(fn)}; takes a function or a module")

    def recomputed(*args: Any, **kwargs: Any) -> R:
        return _recorded(fn, args, kwargs)  # type: ignore[no-any-return]

    return functools.update_wrapper(recomputed, fn)


def _recorded(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        tensors: list[TensorBase] = []
        structure = skeleton((args, kwargs), tensors, "an argument")
        first, name = next_id(), getattr(fn, "__name__", type(fn).__name__)
        with tracing_part(name, _NAME) as trace:
            # What stands for an argument while ``fn`` runs.
            stands = [placeholder(_one(t._node), t.device, t._node.tracked) for t in tensors]
            given, named = fill(structure, lambda slot: _wrapped(slot, stands))
            returned = fn(*given, **named)
            results: list[TensorBase] = []
            shape = skeleton(returned, results, "the result", trace)
            nodes, written = [result._node for result in results], trace.written
            del returned, results, given, named
    except Error as error:
        if str(error).startswith("compile: "):
            raise type(error)(f"{_NAME}: {str(error).removeprefix('compile: ')}") from error
        raise
    instead: dict[GraphNode, GraphNode] = dict(zip(stands, (tensor._node for tensor in tensors)))
    for key in trace.keys:
        instead[key] = random_key(key.device)
    made = _as_one_operation([*nodes, *written.values()], instead, first, trace)
    _set(trace, written, made[len(nodes) :])

    return fill(shape, lambda slot: _wrapped(slot, made))


def _wrapped(slot: Slot, nodes: Sequence[GraphNode]) -> Any:
    return slot.kind._from_node(nodes[slot.index])  # type: ignore[attr-defined]


def _one(node: GraphNode) -> Meta:
    return node.meta  # type: ignore[return-value]


def _as_one_operation(
    wanted: list[GraphNode], instead: dict[GraphNode, GraphNode], first: int, trace: Trace
) -> list[GraphNode]:
    """Nodes for ``wanted``, computed by one operation of what they take from outside.

    Outside is what was recorded before the id ``first``, what has a value, and what stands for something, which
    ``instead`` says. Raises ``Error`` for a variable that is used after it was set: no gradient would reach it.
    """

    def is_outside(node: GraphNode) -> bool:
        return node.id < first or node.value is not None or node in instead or not node.inputs

    order = topological_order(wanted, stop=is_outside)
    inside = [node for node in order if not is_outside(node)]
    outputs = [node for node in dict.fromkeys(wanted) if not is_outside(node)]
    if not outputs:
        return [instead.get(node, node) for node in wanted]
    # Inputs in the order of their use, so that blocks alike have bodies alike, whenever their weights were made.
    known = set(inside)
    sources = dict.fromkeys(source for node in inside for source in node.inputs if source not in known)
    for node in inside:
        for source in node.inputs:
            variable = source.variable if source in known and source.tracked else None
            if variable is not None and variable not in trace.made:
                raise Error(
                    f"{_NAME}: the function uses a variable {list(source.shape)} after it has set it, where no "
                    "gradient would reach the variable; use the tensor it is set to, or set it outside"
                )
    body = body_of(outputs, inside, {source: place for place, source in enumerate(sources)})
    inputs = [instead.get(source, source) for source in sources]
    leading, reached = body.leading([node.tracked for node in inputs])
    # No gradient is looked for where none passes: the variable shall have none rather than zeros.
    inputs = [node if leads or not node.tracked else record(Detach(), (node,)) for node, leads in zip(inputs, leading)]
    node = record(Checkpoint(body), tuple(inputs), body.device)
    several = [record(Pick(i), (node,)) for i in range(len(outputs))] if len(outputs) > 1 else [node]
    several = [
        part if passes or not part.tracked else record(Detach(), (part,)) for part, passes in zip(several, reached)
    ]
    found = dict(zip(outputs, several))
    return [found.get(node) or instead.get(node, node) for node in wanted]


def _set(trace: Trace, written: dict[Variable, GraphNode], nodes: list[GraphNode]) -> None:
    for variable, node in zip(written, nodes):
        if variable not in trace.made:
            CellTensor(variable)._store(node)
