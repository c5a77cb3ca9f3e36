"""What an evaluation would do, in words: the graph before and after rewriting, the rules, the kernels, the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .. import settings
from ..error import ArgumentValueError, Error
from . import render
from .cost import cost_of_all
from .fold import LIMIT
from .fuse import nodes_of
from .node import GraphNode, NodeNumber, topological_order, unevaluated_order
from .operation import Meta, Metas
from .operations.custom import Custom
from .plans import apply_rules, switched_off, why_not_rewritten
from .rewrite import Log
from .spread import parts_of
from .structure import Structure, lock, survey
from .term import Term, TermGraph, terms_of

MOST_LINES = 40
"""Of rules and kernels so many lines are shown, unless all are asked for."""
MOST_OF_A_RULE = 4
"""Of the places where one rule declines."""
HELD = "somebody holds its value"
REMEDY = (
    "  a value that somebody holds is computed by itself: build the expression in a function, `del` the name, "
    "or use compile"
)


class Explanation(str):
    """A text that a Python prompt shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def explain(nodes: Sequence[GraphNode], limit: int | None = LIMIT) -> Explanation:
    """What evaluating ``nodes`` would do. Nothing is computed."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ArgumentValueError(f"explain: got limit {limit!r}; takes a whole number from 1, or None for all")
    wanted = [node for node in nodes if node.value is None]
    # Before any list refers to the nodes in between: that would count as somebody who holds them.
    structure, before = _surveyed(wanted)
    order = topological_order(nodes)
    needed = unevaluated_order(wanted)
    waiting = [node for node in needed if node.value is None and (node.inputs or node.operation.arity != 0)]
    lines = [
        f"{_count(len(order), 'node')}: {len(waiting):,} to compute ({cost_of_all(waiting)}), "
        f"{len(order) - len(waiting):,} evaluated",
        render.text(order, limit),
    ]
    if structure is not None and before is not None and waiting:
        log = Log(telling=True, ids=[node.id for node in structure.nodes])
        after = apply_rules(before, log)
        lines += ["", *_rewriting(structure, after, log, limit)]
        lines += ["", *_kernels(structure, after, limit)]
        parts, why = parts_of(after, structure.device)
        lines += ["", f"evaluation: {why}" if len(parts) > 1 else f"evaluation: in one piece: {why}"]
    return Explanation("\n".join(lines))


def _surveyed(wanted: Sequence[GraphNode]) -> tuple[Structure | None, TermGraph | None]:
    if not wanted:
        return None, None
    with lock:
        structure = survey(wanted, any_leaf=True)
        return structure, terms_of(structure)


def _rewriting(structure: Structure, after: TermGraph, log: Log, limit: int | None) -> list[str]:
    why_not = why_not_rewritten(structure.nodes)
    if why_not is not None:
        return [f"not rewritten: {why_not}"]
    nodes, _ = nodes_of(structure, after)
    computed = [nodes[term] for term in after.order if term.operation is not None]
    ids = [node.id for node in structure.nodes]
    lines = [f"rewritten: {_count(len(computed), 'operation')} ({cost_of_all(computed)})"]
    off = switched_off()
    if off:
        lines.append(f"switched off: {', '.join(sorted(off))}")
    if log.fired:
        lines += [render.text(list(dict.fromkeys(nodes[term] for term in after.order)), limit)]
        applied = [f"  {fired.rule}{_at(fired.place, ids)}: {fired.before} -> {fired.after}" for fired in log.fired]
        lines += ["rules that were applied:", *_listed(applied, limit)]
    else:
        lines.append("no rule applies")
    missed = _missed(log, ids, limit)
    if missed:
        lines += ["rules that were not:", *missed]
    return lines


def _missed(log: Log, ids: Sequence[NodeNumber], limit: int | None) -> list[str]:
    """Where rules declined and why, what is held first: that the reader can change."""
    from .rewrites import PASSES

    quiet = {rule.name for each in PASSES if each.quiet and limit is not None for rule in each.rules}
    by_rule: dict[str, dict[str, None]] = {}
    for missed in sorted(log.missed, key=lambda each: HELD not in each.reason):
        if missed.rule in quiet and HELD not in missed.reason:
            continue
        by_rule.setdefault(missed.rule, {})[f"  {missed.rule}{_at(missed.place, ids)}: {missed.reason}"] = None
    lines: list[str] = []
    for rule, places in by_rule.items():
        shown = list(places) if limit is None else list(places)[:MOST_OF_A_RULE]
        lines += shown
        if len(shown) < len(places):
            lines.append(f"  {rule}: {len(places) - len(shown)} more")
    lines = _listed(lines, limit)
    return [*lines, REMEDY] if any(HELD in line for line in lines) else lines


def _kernels(structure: Structure, graph: TermGraph, limit: int | None) -> list[str]:
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
    return ["kernels:", *_listed(list(dict.fromkeys(lines)), limit)] if lines else ["kernels: none of our own"]


def _nothing(meta: Metas) -> Any:
    if isinstance(meta, Meta):
        return mx.zeros(meta.shape, meta.dtype.mlx_)
    return tuple(_nothing(part) for part in meta)


def _at(place: int | None, ids: Sequence[NodeNumber]) -> str:
    return "" if place is None else f" at %{ids[place]}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _listed(lines: list[str], limit: int | None) -> list[str]:
    if limit is None or len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"  … {len(lines) - MOST_LINES} more"]
