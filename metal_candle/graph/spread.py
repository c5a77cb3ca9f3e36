"""Independent results one after the other, and on several CPU streams where that pays."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import mlx.core as mx

from ..device import Device
from .cost import element_work
from .plan import Plan
from .term import Term, TermGraph

# Matrix products do not count in what follows: a BLAS spreads each over all cores by itself.
LEAST_WORK = 300_000.0
"""Nanoseconds of element work, by the estimate of ``element_work``, that a further stream must have to do: starting one
and waiting for it takes up to 0.1 ms."""
LEAST_PART = 50_000.0
"""Nanoseconds below which parts are begun together: beginning one takes up to 10 us."""


class Part(NamedTuple):
    """Terms that depend on nothing of other parts, and the stream that computes them; 0 is the current one."""

    stream: int
    terms: list[Term]


class PartedPlan:
    """Plans for parts of a graph that share nothing but leaves, begun in turn, or one on each stream at once.

    Not all at once: MLX computes what it is given together breadth first, and what a chain's operation wrote is no
    longer in the cache when the next one reads it (1.5 times as long for 32 chains of norms). Nor each alone where
    there are several streams: MLX hands out ten tasks at most before it waits, and they would all be of one stream.
    """

    def __init__(self, graph: TermGraph, parts: Sequence[Part], device: Device) -> None:
        place = {root: i for i, root in enumerate(graph.roots)}
        self.parts: list[tuple[int, Plan, list[int]]] = []
        for part in parts:
            inside = set(part.terms)
            roots = [root for root in dict.fromkeys(graph.roots) if root in inside]
            order = [term for term in graph.order if term in inside or term.operation is None]
            plan = Plan(TermGraph(order, roots, graph.leaves), device)
            self.parts.append((part.stream, plan, [place[root] for root in roots]))
        computed = {index for _, _, places in self.parts for index in places}
        leaves = {leaf: i for i, leaf in enumerate(graph.leaves)}
        # A leaf that is asked for is given back as it is; a root that is asked for twice is computed once.
        self._given = [(place[root], leaves[root]) for root in place if place[root] not in computed]
        self._again = [place[root] for root in graph.roots]
        self.steps = [step for _, plan, _ in self.parts for step in plan.steps]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The roots' arrays for these values of the leaves, under way but for those of the last parts."""
        found: dict[int, Any] = {index: values[leaf] for index, leaf in self._given}
        together: list[Any] = []
        for stream, plan, places in self.parts:
            if stream == 0 and together:
                mx.async_eval(*together)  # type: ignore[no-untyped-call]
                together = []
            with _on_stream(stream):
                results = plan.run(values)
            together += results
            found.update(zip(places, results))
        return [found[i] for i in self._again]


MOST_THREADS = 16
"""How many threads get further streams: MLX never gives one back, and each has a thread of the system."""

_threads_with_streams = itertools.count()


class _Streams(threading.local):
    """The further streams of a thread: MLX computes an array only in a thread that knows its stream."""

    def __init__(self) -> None:
        self.streams: list[mx.Stream] = []
        self.allowed = next(_threads_with_streams) < MOST_THREADS


_streams = _Streams()


def _on_stream(index: int) -> Any:
    """A context in which MLX computes on the thread's stream of this number; 0 is the current one."""
    if index == 0 or not _streams.allowed:
        return nullcontext()
    while len(_streams.streams) < index:
        _streams.streams.append(mx.new_stream(mx.cpu))
    return mx.stream(_streams.streams[index - 1])


def parts_of(graph: TermGraph, device: Device) -> tuple[list[Part], str]:
    """The parts to compute a graph in, in the order to begin them, and why so; a single one where more do not pay."""
    computed = [term for term in graph.order if term.operation is not None]
    whole = [Part(0, computed)]
    if not device.is_cpu():
        return whole, "one submission to the GPU"
    if len(graph.roots) < 2:
        return whole, "one result"
    if any(term.device != device for term in computed):
        return whole, "several devices"
    if any(not term.operation.pure for term in computed if term.operation is not None):
        return whole, "operations whose order matters"
    parts = _components(computed)
    if len(parts) < 2:
        return whole, "its results depend on each other or on the same"
    bundles = _bundled([(sum(map(element_work, part)), part) for part in parts])
    total = sum(work for work, _ in bundles)
    if len(bundles) < 2:
        return whole, f"{total / 1e6:.2f} ms of element work in {len(parts)} parts are too little to share out"
    count = max(1, min(len(bundles), _cores(), int(total // LEAST_WORK)))
    # The largest first, each to the stream that has least to do; begun in turn, so that no stream waits for its first.
    loads, queues = [0.0] * count, [list[list[Term]]() for _ in range(count)]
    for work, terms in sorted(bundles, key=lambda bundle: -bundle[0]):
        least = loads.index(min(loads))
        loads[least] += work
        queues[least].append(terms)
    rounds = itertools.zip_longest(*queues)
    shared = [Part(i, terms) for each in rounds for i, terms in enumerate(each) if terms is not None]
    return shared, f"{len(parts)} independent parts one after the other on {count} stream{'s' if count > 1 else ''}"


def _bundled(parts: Sequence[tuple[float, list[Term]]]) -> list[tuple[float, list[Term]]]:
    """Parts with their work, those too small to be begun alone together."""
    bundles: list[tuple[float, list[Term]]] = []
    small: list[Term] = []
    waiting = 0.0
    for work, terms in parts:
        if work >= LEAST_PART:
            bundles.append((work, terms))
            continue
        small += terms
        waiting += work
        if waiting >= LEAST_PART:
            bundles.append((waiting, small))
            small, waiting = [], 0.0
    if small:
        bundles.append((waiting, small))
    return bundles


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
