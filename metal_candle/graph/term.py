"""The graph as rewriting sees it: operations on terms, without values and without anybody who holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..device import Device
from ..dtype import DType
from ..shape import Shape
from .node import GraphNode
from .operation import Metas, Operation
from .structure import Structure


class Term:
    """An operation on other terms, or a leaf, which has no operation.

    ``place`` is where the node stands in its ``Structure`` whose value this is, if one has it. ``held`` says that
    somebody asks for the value; ``uses`` counts the terms of its graph that take it as an input.
    """

    __slots__ = ("device", "held", "inputs", "meta", "operation", "place", "uses")

    def __init__(
        self,
        operation: Operation | None,
        inputs: tuple[Term, ...],
        meta: Metas,
        device: Device,
        place: int | None = None,
        held: bool = False,
        uses: int = 0,
    ) -> None:
        self.operation, self.inputs, self.meta, self.device = operation, inputs, meta, device
        self.place, self.held, self.uses = place, held, uses

    @property
    def shape(self) -> Shape:
        """Shape of the value."""
        return self.meta[0]  # type: ignore[return-value]

    @property
    def dtype(self) -> DType:
        """Dtype of the value."""
        return self.meta[1]  # type: ignore[return-value]

    def is_shared(self) -> bool:
        """Whether the value is needed beside its one use, so that a fused operation would compute it again."""
        return self.held or self.uses > 1

    def __repr__(self) -> str:
        return written(self)


class TermGraph:
    """Terms in order, dependencies first, and those among them whose values are asked for, by ``Structure.roots``."""

    __slots__ = ("leaves", "order", "roots")

    def __init__(self, order: list[Term], roots: list[Term], leaves: list[Term]) -> None:
        self.order, self.roots, self.leaves = order, roots, leaves

    def kinds(self) -> set[type[Operation]]:
        """The records that occur."""
        return {type(term.operation) for term in self.order if term.operation is not None}


def terms_of(structure: Structure) -> TermGraph:
    """The terms of a structure, one for each node."""
    terms: list[Term] = []
    slots: dict[GraphNode, Term] = {}
    leaves, roots = set(structure.leaves), set(structure.roots)
    for place, node in enumerate(structure.nodes):
        held = place in roots
        if place in leaves:
            term = Term(None, (), node.meta, node.device, place, held)
        else:
            inputs = tuple([slots[source] for source in node.inputs])
            for source in inputs:
                source.uses += 1
            term = Term(node.operation, inputs, node.meta, node.device, place, held)
        slots[node] = term
        terms.append(term)
    return TermGraph(terms, [terms[i] for i in structure.roots], [terms[i] for i in structure.leaves])


def rebuilt(graph: TermGraph, replaced: dict[Term, Term]) -> TermGraph:
    """``graph`` with terms replaced; what nobody needs any more is left out, uses are counted anew."""
    roots = [replaced.get(root, root) for root in graph.roots]
    order: list[Term] = []
    state: dict[Term, bool] = {}
    stack = list(reversed(roots))
    while stack:
        term = stack.pop()
        done = state.get(term)
        if done is None:
            state[term] = False
            term.uses, term.held = 0, False
            stack.append(term)
            stack.extend([source for source in reversed(term.inputs) if source not in state])
        elif not done:
            state[term] = True
            order.append(term)
    for term in order:
        for source in term.inputs:
            source.uses += 1
    for root in roots:
        root.held = True
    return TermGraph(order, roots, graph.leaves)


def substituted(roots: Sequence[Term], instead: Mapping[Term, Term]) -> dict[Term, Term]:
    """What every term that the roots need has become: what stands ``instead``, or the same of inputs that have."""
    done: dict[Term, Term] = {}
    stack = list(roots)
    while stack:
        term = stack[-1]
        other = instead.get(term)
        needs = term.inputs if other is None else (other,)
        waiting = [source for source in needs if source not in done]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if other is not None:
            done[term] = done[other]
        elif all(done[source] is source for source in needs):
            done[term] = term
        else:
            inputs = tuple([done[source] for source in needs])
            done[term] = Term(term.operation, inputs, term.meta, term.device, term.place)
    return done


def apply(operation: Operation, *inputs: Term) -> Term:
    """A new term. Raises what the operation's ``infer`` raises."""
    return Term(operation, inputs, operation.infer(*[term.meta for term in inputs]), inputs[0].device)


def written(term: Term, names: dict[Term, str] | None = None) -> str:
    """A term as an expression: ``lora(x, a, b; scale=0.5)``. Leaves go by ``names``, else by their places."""
    names = {} if names is None else names
    texts: dict[Term, str] = {}
    for part in below([term]):
        if part.operation is None:
            texts[part] = names.get(part, f"${part.place}")
        else:
            texts[part] = called(part.operation, [texts[source] for source in part.inputs])
    return texts[term]


def called(operation: Operation, inputs: Sequence[str]) -> str:
    """An operation of inputs as an expression: ``softmax(x; dim=1)``."""
    name, _, parameters = operation.describe().partition("(")
    inside = "; ".join(part for part in (", ".join(inputs), parameters[:-1]) if part)
    return f"{name}({inside})"


def below(terms: Sequence[Term]) -> list[Term]:
    """Terms and what they depend on, dependencies first; without recursion."""
    order: list[Term] = []
    seen: dict[Term, bool] = {}
    stack: list[Any] = list(terms)
    while stack:
        term = stack.pop()
        if term not in seen:
            seen[term] = False
            stack.append(term)
            stack.extend(source for source in term.inputs if source not in seen)
        elif not seen[term]:
            seen[term] = True
            order.append(term)
    return order
