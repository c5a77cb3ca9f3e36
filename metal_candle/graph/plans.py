"""Plans by structure: a graph that was computed once is not rewritten again."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock

from .. import settings
from ..device import Device
from .cost import Recorded
from .plan import Plan
from .rewrite import Log, in_words, rewrite
from .spread import PartedPlan, parts_of
from .structure import Structure
from .term import TermGraph, terms_of

MOST_TERMS = 200_000
"""How many terms all graphs that are kept have together; one of more than a quarter of that is not kept."""


class Known:
    """A rewritten graph, and its plan once somebody has run it."""

    __slots__ = ("device", "graph", "plan", "rules", "size")

    def __init__(self, graph: TermGraph, device: Device, rules: Counter[str]) -> None:
        self.graph, self.device, self.rules, self.size = graph, device, rules, len(graph.order)
        self.plan: Plan | PartedPlan | None = None


_plans: OrderedDict[Hashable, Known] = OrderedDict()
_terms = 0
_lock = Lock()


def plan_of(structure: Structure) -> Plan | PartedPlan:
    """The plan of a structure: a known one, or one made of the rewritten graph."""
    known = _known(structure)
    if known.plan is None:
        known.plan = planned(known.graph, known.device)
    return known.plan


def planned(graph: TermGraph, device: Device) -> Plan | PartedPlan:
    """A plan for a graph, in parts for several streams where that pays."""
    parts, _ = parts_of(graph, device)
    return Plan(graph, device) if len(parts) == 1 else PartedPlan(graph, parts, device)


def rewritten(structure: Structure) -> tuple[TermGraph, Counter[str]]:
    """The graph of a structure after rewriting, whose terms must not be changed, and how often each rule was applied."""
    known = _known(structure)
    return known.graph, known.rules


def _known(structure: Structure) -> Known:
    global _terms
    key = (structure.key, _SWITCHES.get())
    with _lock:
        known = _plans.get(key)
        if known is not None:
            _plans.move_to_end(key)
            return known
    log = Log()
    known = Known(apply_rules(terms_of(structure), log), structure.device, log.counted())
    if "graph" in settings.DEBUG.words:
        computed = sum(term.operation is not None for term in known.graph.order)
        what = f"{computed} operation{'s' if computed != 1 else ''}"
        settings.log("graph", "planned %d nodes as %s", len(structure.nodes), what)
    lasting = all(term.operation is None or term.operation.is_lasting() for term in known.graph.order)
    if lasting and known.size <= MOST_TERMS // 4:
        with _lock:
            if key not in _plans:
                _plans[key] = known
                _terms += known.size
            while _terms > MOST_TERMS:
                _, oldest = _plans.popitem(last=False)
                _terms -= oldest.size
    return known


def apply_rules(graph: TermGraph, log: Log) -> TermGraph:
    """The graph after the passes that are switched on; as it is where ``why_not_rewritten`` has a reason."""
    if why_not_rewritten(graph.order) is not None:
        return graph
    from .rewrites import PASSES  # eager programs never wait for the import of the rules

    graph = rewrite(graph, PASSES, log, _SWITCHES.get() or ())
    if log.fired and not log.telling and "rewrite" in settings.DEBUG.words:
        settings.log("rewrite", "%s", in_words(log.counted()))
    return graph


def why_not_rewritten(parts: Sequence[Recorded]) -> str | None:
    """Why a graph of these is computed as it was recorded, if it is."""
    if _SWITCHES.get() is None:
        return "feature rewrite is off"
    for part in parts:
        if part.operation is not None and not part.operation.pure:
            return f"{part.operation.name()} changes what it is given, so that order matters"
    return None


def _switched_off() -> frozenset[str] | None:
    """The names of passes and rules that are switched off; ``None`` if all are."""
    words = settings.DISABLE.words
    if "rewrite" in words:
        return None
    return frozenset(word.partition(".")[2] for word in words if word.startswith("rewrite."))


_SWITCHES = settings.Derived(_switched_off, settings.DISABLE)
