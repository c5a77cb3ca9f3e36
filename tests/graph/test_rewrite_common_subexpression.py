"""Equal operations that are not the same computation: what makes a difference each time, and other devices."""

from __future__ import annotations

from metal_candle import Device, LazyTensor, Tensor
from metal_candle.device import DeviceType
from metal_candle.graph.operations.binary import Add
from metal_candle.graph.operations.unary import Exp
from metal_candle.graph.rewrite import Log
from metal_candle.graph.rewrites.common_subexpression import merge
from metal_candle.graph.structure import survey
from metal_candle.graph.term import Term, TermGraph, apply, terms_of

import numpy as np
import pytest


def two_of_one() -> TermGraph:
    x = LazyTensor.from_tensor(Tensor(np.ones((3, 5), np.float32)))
    return terms_of(survey([(x.exp() + x.exp())._node]))


def names(graph: TermGraph) -> list[str]:
    return [term.operation.name() for term in graph.order if term.operation]


def test_what_is_equal_is_computed_once() -> None:
    assert names(merge(two_of_one(), Log())) == ["exp", "add"]


def test_what_makes_a_difference_each_time_is_computed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exp, "pure", False)
    assert names(merge(two_of_one(), Log())) == ["exp", "exp", "add"]


def test_each_device_computes_its_own() -> None:
    leaf = next(term for term in two_of_one().order if term.operation is None)
    exp = Exp()
    here = apply(exp, leaf)
    there = Term(exp, (leaf,), here.meta, Device(DeviceType.Metal, 0))
    total = apply(Add(), here, there)
    order = [leaf, here, there, total]
    assert names(merge(TermGraph(order, [total], [leaf]), Log())) == ["exp", "exp", "add"]
