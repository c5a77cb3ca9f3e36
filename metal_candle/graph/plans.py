"""Plans by structure: a graph that was computed once is not rewritten again."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Hashable, Sequence

from .. import features, settings
from ..device import Device
from ..kernels.kernel import launching
from .cost import Recorded
from .node import GraphNode
from .plan import Plan
from .rewrite import Log, in_words, rewrite
from .spread import PartedPlan, parts_of
from .structure import Structure, lock, survey
from .term import TermGraph, terms_of

MOST_TERMS = 200_000
"""How many terms all graphs that are kept have together; one of more than a quarter of that is not kept."""


class Known:
    """A rewritten graph, and its plan once somebody has run it."""

    __slots__ = ("_plan", "device", "graph", "rules", "size")

    def __init__(self, graph: TermGraph, device: Device, rules: Counter[str]) -> None:
        self.graph, self.device, self.rules, self.size = graph, device, rules, len(graph.order)
        self._plan: Plan | PartedPlan | None = None

    @property
    def plan(self) -> Plan | PartedPlan:
        """Its plan, made when it is asked for: a graph that is only differentiated needs none."""
        if self._plan is None:
            self._plan = plan_for(self.graph, self.device)
        return self._plan


_plans: OrderedDict[Hashable, Known] = OrderedDict()
_terms = 0


def planned(
    wanted: Sequence[GraphNode], given: Collection[GraphNode] = (), any_leaf: bool = False
) -> tuple[Structure, Known]:
    """What has to be computed for ``wanted``, as ``survey`` finds it, and the rewritten graph of that.

    The graph is a known one if there is one of this structure. Its terms must not be changed.
    """
    with lock:
        structure = survey(wanted, given, any_leaf)
        key = (structure.key, *conditions())
        known = _plans.get(key)
        if known is not None:
            _plans.move_to_end(key)
            return structure, known
        # Before another thread computes or rewrites nodes of it: the key says what they are now.
        graph = terms_of(structure)
    log = Log()
    known = Known(apply_rules(graph, log), structure.device, log.counted())
    if "graph" in settings.DEBUG.words:
        computed = sum(term.operation is not None for term in known.graph.order)
        what = f"{computed} operation{'s' if computed != 1 else ''}"
        settings.log("graph", "planned %d nodes as %s", len(structure.nodes), what)
    lasting = all(term.operation is None or term.operation.is_lasting() for term in known.graph.order)
    if lasting and known.size <= MOST_TERMS // 4:
        _remember(key, known)
    return structure, known


def conditions() -> tuple[Hashable, ...]:
    """What a plan depends on beside its graph: switches, and whether kernels of ours are launched."""
    return _SWITCHES.get(), launching()


def _remember(key: Hashable, known: Known) -> None:
    global _terms
    with lock:
        if key not in _plans:
            _plans[key] = known
            _terms += known.size
        while _terms > MOST_TERMS:
            _, oldest = _plans.popitem(last=False)
            _terms -= oldest.size


def plan_for(graph: TermGraph, device: Device) -> Plan | PartedPlan:
    """A plan for a graph, in parts where that pays."""
    parts, _ = parts_of(graph, device)
    return Plan(graph, device) if len(parts) == 1 else PartedPlan(graph, parts, device)


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


def switched_off() -> frozenset[str]:
    """The passes and rules that are switched off by name."""
    return _SWITCHES.get() or frozenset()


def _switched_off() -> frozenset[str] | None:
    """The names of passes and rules that are switched off; ``None`` if all are."""
    words = features.switched_off()
    if "rewrite" in words:
        return None
    return frozenset(word.partition(".")[2] for word in words if word.startswith("rewrite."))


_SWITCHES = settings.Derived(_switched_off, settings.DISABLE, settings.DEBUG)
