"""What would be computed for lazy tensors, and why rules declined: for the tests of rewriting."""

from __future__ import annotations

from metal_candle import LazyTensor
from metal_candle.graph.plans import apply_rules
from metal_candle.graph.rewrite import Log
from metal_candle.graph.structure import survey
from metal_candle.graph.term import TermGraph, terms_of


def rewritten(*results: LazyTensor, log: Log | None = None) -> TermGraph:
    """The graph after all passes. Results must not be recorded inside an assert: pytest would hold what is in there."""
    return apply_rules(terms_of(survey([result._node for result in results])), Log() if log is None else log)


def lowered(*results: LazyTensor) -> list[str]:
    """The names of the operations that would be computed."""
    return [term.operation.name() for term in rewritten(*results).order if term.operation is not None]


def applied(*results: LazyTensor, rule: str = "") -> tuple[list[str], str]:
    """``lowered``, and the reasons why rules declined, or only one ``rule``."""
    log = Log(telling=True)
    graph = rewritten(*results, log=log)
    names = [term.operation.name() for term in graph.order if term.operation is not None]
    return names, "".join(missed.reason for missed in log.missed if rule in ("", missed.rule))
