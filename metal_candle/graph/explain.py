"""What an evaluation would do, in words: the graph before and after rewriting, the rules, the kernels, the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .. import settings
from ..error import Error
from . import render
from .cost import cost_of_all
from .fold import LIMIT
from .fuse import nodes_of
from .node import GraphNode, topological_order
from .operation import Meta, Metas
from .operations.custom import Custom
from .plans import apply_rules, why_not_rewritten
from .rewrite import Log
from .spread import parts_of
from .structure import Structure, survey
from .term import Term, TermGraph, terms_of

MOST_LINES = 40
"""Of rules and kernels so many lines are shown."""


class Explanation(str):
    """A text that a Python prompt shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def explain(nodes: Sequence[GraphNode], limit: int | None = LIMIT) -> Explanation:
    """What evaluating ``nodes`` would do. Nothing is computed."""
    wanted = [node for node in nodes if node.value is None]
    # Before any list refers to the nodes in between: that would count as somebody who holds them.
    structure = survey(wanted, any_leaf=True) if wanted else None
    order = topological_order(nodes)
    waiting = [node for node in order if node.value is None and (node.inputs or node.operation.arity != 0)]
    lines = [
        f"{_count(len(order), 'node')}: {len(waiting):,} to compute ({cost_of_all(waiting)}), "
        f"{len(order) - len(waiting):,} evaluated",
        render.text(order, limit),
    ]
    if structure is not None and waiting:
        log = Log(telling=True, ids=[node.id for node in structure.nodes])
        after = apply_rules(terms_of(structure), log)
        lines += ["", *_rewriting(structure, after, log, limit)]
        lines += ["", *_kernels(structure, after)]
        parts, why = parts_of(after, structure.device)
        lines += ["", f"evaluation: {why}" if len(parts) > 1 else f"evaluation: in one piece: {why}"]
    return Explanation("\n".join(lines))


def _rewriting(structure: Structure, after: TermGraph, log: Log, limit: int | None) -> list[str]:
    why_not = why_not_rewritten(structure.nodes)
    if why_not is not None:
        return [f"not rewritten: {why_not}"]
    nodes, _ = nodes_of(structure, after)
    computed = [nodes[term] for term in after.order if term.operation is not None]
    ids = [node.id for node in structure.nodes]
    lines = [f"rewritten: {_count(len(computed), 'operation')} ({cost_of_all(computed)})"]
    if log.fired:
        lines += [
            render.text(list(dict.fromkeys(nodes[term] for term in after.order)), limit),
            "rules that were applied:",
        ]
        lines += _listed(
            [f"  {fired.rule}{_at(fired.place, ids)}: {fired.before} -> {fired.after}" for fired in log.fired]
        )
    else:
        lines.append("no rule applies")
    if log.missed:
        lines.append("rules that were not:")
        lines += _listed(
            list(dict.fromkeys(f"  {missed.rule}{_at(missed.place, ids)}: {missed.reason}" for missed in log.missed))
        )
    return lines


def _kernels(structure: Structure, graph: TermGraph) -> list[str]:
    """Which variant each kernel chooses, and why: asked by lowering to arrays that nobody evaluates."""
    values: dict[Term, Any] = {}
    lines = []
    ids = [node.id for node in structure.nodes]
    with mx.stream(structure.device.mlx()):
        for term in graph.order:
            operation = term.operation
            if operation is not None and operation.pure and not isinstance(operation, Custom):
                with settings.captured("kernel") as said:
                    try:
                        operation.lower(*[values[source] for source in term.inputs])
                    except (Error, ValueError) as error:
                        said.append(f"not known: {error}")
                lines += [f"  {operation.name()}{_at(term.place, ids)}: {line}" for line in said]
            values[term] = _nothing(term.meta)
    return ["kernels:", *_listed(list(dict.fromkeys(lines)))] if lines else ["kernels: none of our own"]


def _nothing(meta: Metas) -> Any:
    if isinstance(meta, Meta):
        return mx.zeros(meta.shape, meta.dtype.mlx_)
    return tuple(_nothing(part) for part in meta)


def _at(place: int | None, ids: Sequence[int]) -> str:
    return "" if place is None else f" at %{ids[place]}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _listed(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"  … {len(lines) - MOST_LINES} more"]
