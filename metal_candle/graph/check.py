"""Whether a rewrite pass left a graph that makes sense; on in the tests and with ``METAL_CANDLE_CHECK=1``."""

from __future__ import annotations

from .. import settings
from ..error import Error
from .operation import Operation
from .operations.structure import Vjp
from .term import Term, TermGraph, written


def enabled() -> bool:
    """Whether graphs are checked."""
    return settings.CHECK.value not in ("", "0")


def legal(before: TermGraph, after: TermGraph, name: str) -> None:
    """Raise ``Error``, naming the pass, unless ``after`` is in order and promises the same results as ``before``."""
    if len(before.roots) != len(after.roots):
        raise Error(f"rewrite {name}: {len(before.roots)} results became {len(after.roots)}")
    for was, now in zip(before.roots, after.roots):
        if was.meta != now.meta or was.device != now.device:
            raise Error(f"rewrite {name}: {written(was)} of {was.meta} became {written(now)} of {now.meta}")
    seen: set[Term] = set()
    uses: dict[Term, int] = {}
    for term in after.order:
        for source in term.inputs:
            if source not in seen:
                raise Error(f"rewrite {name}: {written(term)} comes before its input {written(source)}")
            uses[source] = uses.get(source, 0) + 1
        if term.operation is not None:
            _infers(term, term.operation, name)
        seen.add(term)
    for root in after.roots:
        if root not in seen or not root.held:
            raise Error(f"rewrite {name}: the result {written(root)} is not computed or not marked as held")
    for term in after.order:
        if term.uses != uses.get(term, 0):
            raise Error(f"rewrite {name}: {written(term)} is used {uses.get(term, 0)} times, not {term.uses}")


def _infers(term: Term, operation: Operation, name: str) -> None:
    if isinstance(operation, Vjp) or not operation.pure:
        return
    found = operation.infer(*[source.meta for source in term.inputs])
    if found != term.meta:
        raise Error(f"rewrite {name}: {written(term)} is {found}, and says it is {term.meta}")
