"""Independent results on several CPU streams, where that pays."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..device import Device
from .cost import element_work
from .plan import Plan
from .term import Term, TermGraph

# What a further stream must have to do at the least, by the estimate of ``element_work``: starting one and waiting for
# it takes up to 0.1 ms. Matrix products do not count: a BLAS spreads each over all cores by itself.
LEAST_WORK = 300_000.0
"""Nanoseconds."""


class SpreadPlan:
    """Plans for parts of a graph that share nothing but leaves, each computed on a stream of its own."""

    def __init__(self, graph: TermGraph, groups: Sequence[Sequence[Term]], device: Device) -> None:
        place = {root: i for i, root in enumerate(graph.roots)}
        self.parts: list[tuple[Plan, list[int]]] = []
        for group in groups:
            inside = set(group)
            roots = [root for root in dict.fromkeys(graph.roots) if root in inside]
            order = [term for term in graph.order if term in inside or term.operation is None]
            self.parts.append((Plan(TermGraph(order, roots, graph.leaves), device), [place[root] for root in roots]))
        # A root that is asked for twice, or that is a leaf, belongs to no part twice.
        self._again = [place[root] for root in graph.roots]
        self.steps = [step for plan, _ in self.parts for step in plan.steps]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The roots' arrays, not yet evaluated by MLX, for these values of the leaves."""
        found: dict[int, Any] = {}
        for i, (plan, places) in enumerate(self.parts):
            if i == 0:
                results = plan.run(values)
            else:
                with mx.stream(_stream(i)):
                    results = plan.run(values)
            if i + 1 < len(self.parts):
                # It is under way while the calls of the next part are made.
                mx.async_eval(*results)  # type: ignore[no-untyped-call]
            found.update(zip(places, results))
        return [found[i] for i in self._again]


class _Streams(threading.local):
    """The further streams of a thread: MLX computes an array only in a thread that knows its stream."""

    def __init__(self) -> None:
        self.streams: list[mx.Stream] = []


_streams = _Streams()


def _stream(index: int) -> mx.Stream:
    while len(_streams.streams) < index:
        _streams.streams.append(mx.new_stream(mx.cpu))
    return _streams.streams[index - 1]


def groups(graph: TermGraph, device: Device) -> tuple[list[list[Term]], str]:
    """The terms to compute on each stream, and why so; a single group where spreading does not pay."""
    computed = [term for term in graph.order if term.operation is not None]
    if not device.is_cpu():
        return [computed], "one submission to the GPU"
    if any(term.device != device for term in computed):
        return [computed], "several devices"
    if len(graph.roots) < 2:
        return [computed], "one result"
    parts = _components(computed)
    if len(parts) < 2:
        return [computed], "its results depend on each other or on the same"
    if any(not term.operation.pure for term in computed if term.operation is not None):
        return [computed], "operations whose order matters"
    work = [sum(element_work(term) for term in part) for part in parts]
    count = min(len(parts), _cores())
    # The largest first, each to the stream that has least to do.
    loads, chosen = [0.0] * count, [list[Term]() for _ in range(count)]
    for i in sorted(range(len(parts)), key=lambda i: -work[i]):
        least = loads.index(min(loads))
        loads[least] += work[i]
        chosen[least] += parts[i]
    used = [i for i in range(count) if loads[i] >= LEAST_WORK]
    if len(used) < 2:
        known = f"{sum(work) / 1e6:.2f} ms of element work in {len(parts)} parts"
        return [computed], f"{known} is less than {LEAST_WORK / 1e6} ms for each of two streams"
    for i in range(count):
        if i not in used:
            chosen[used[0]] += chosen[i]
    return [chosen[i] for i in used], f"{len(parts)} independent parts on {len(used)} streams"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _components(terms: Sequence[Term]) -> list[list[Term]]:
    """Sets of terms that depend on nothing of each other; leaves, which have their values, do not count."""
    parent: dict[Term, Term] = {}

    def find(term: Term) -> Term:
        while parent[term] is not term:
            parent[term] = parent[parent[term]]
            term = parent[term]
        return term

    for term in terms:
        parent[term] = term
        for source in term.inputs:
            if source.operation is not None:
                parent[find(source)] = term
    found: dict[Term, list[Term]] = {}
    for term in terms:
        found.setdefault(find(term), []).append(term)
    return list(found.values())
