"""What would be computed for lazy tensors, and why rules declined: for the tests of rewriting."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from metal_candle import LazyTensor
from metal_candle.graph.plans import apply_rules
from metal_candle.graph.rewrite import Example, Log
from metal_candle.graph.structure import survey
from metal_candle.graph.term import TermGraph, terms_of
from metal_candle.kernels import custom

import emulator
import pytest


class Gpu:
    """What a rule finds where kernels of ours are launched. It launches none."""

    name = "gpu"
    trusted = True

    def launch(self, program: custom.Program, inputs: Sequence[Any], how: custom.Launch) -> list[Any]:
        raise AssertionError(f"{program.name} is launched")


def where_planned(example: Example) -> AbstractContextManager[None]:
    """Where an example is rewritten."""
    return custom.using(Gpu()) if example.launched else nullcontext()


def where_computed(example: Example) -> AbstractContextManager[None]:
    """Where an example is computed. Skips the test if what it needs is not there."""
    if not example.launched:
        return nullcontext()
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    return custom.using(emulator.Emulator())


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
