"""Every rewrite by its own examples: the graph before and after, the values, the gradients."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.graph.plans import apply_rules
from metal_candle.graph.rewrite import Example, Log, Pass, rewrite
from metal_candle.graph.rewrites import PASSES, common_subexpression
from metal_candle.graph.structure import survey
from metal_candle.graph.term import terms_of, written

import numpy as np
import pytest
from rewriting import where_computed, where_planned

CASES = [
    pytest.param(each, example, id=f"{each.name}-{i}") for each in PASSES for i, example in enumerate(each.examples)
]
# Of values of about 1 that a few roundings of the dtype went into: float32 6e-8 and bfloat16 4e-3 each.
TOLERANCE = {"f32": 2e-5, "bf16": 6e-2, "f16": 6e-3, "f64": 1e-9}


def operands(example: Example, dtype: str) -> list[Any]:
    rng = np.random.default_rng(0)
    integers = dict(example.ids)
    return [
        Tensor(rng.integers(0, integers[i], shape).astype(np.uint32))
        if i in integers
        else Tensor(rng.uniform(-1, 1, shape).astype(np.float32)).to_dtype(dtype)
        for i, shape in enumerate(example.shapes)
    ]


def recorded(example: Example, tensors: Sequence[Any]) -> LazyTensor:
    result: LazyTensor = example.before(*[LazyTensor.from_tensor(tensor) for tensor in tensors])
    return result


@pytest.mark.parametrize(("each", "example"), CASES)
def test_the_graph_before_and_after(each: Pass, example: Example) -> None:
    tensors = operands(example, example.dtypes[0])
    y = recorded(example, tensors)
    structure = survey([y._node])
    graph = terms_of(structure)
    names = dict(zip((tensor._node for tensor in tensors), inspect.signature(example.before).parameters))
    leaves = {leaf: names.get(structure.nodes[leaf.place or 0], "constant") for leaf in graph.leaves}
    log = Log(telling=True)
    first = () if each is common_subexpression.PASS else (common_subexpression.PASS,)
    with where_planned(example):
        after = rewrite(graph, (*first, each), log)
    assert written(after.roots[0], leaves) == example.after
    reasons = [missed.reason for missed in log.missed]
    assert not example.because or any(example.because in reason for reason in reasons), reasons


@pytest.mark.parametrize(("each", "example"), CASES)
def test_values_and_gradients_are_kept(each: Pass, example: Example) -> None:
    for dtype in example.dtypes:
        tensors = operands(example, dtype)
        wide = [tensor.to_dtype("f64") if tensor.dtype.is_float() else tensor for tensor in tensors]
        with features.disabled("rewrite"):
            expected = values_and_gradients(example, wide)
        with where_computed(example):
            found = values_and_gradients(example, tensors)
        for got, want in zip(found, expected):
            scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0.0)))
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=dtype)


def values_and_gradients(example: Example, tensors: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    variables = [Var.from_tensor(tensor) if tensor.dtype.is_float() else tensor for tensor in tensors]
    y = recorded(example, variables)
    alone = recorded(example, variables).eval()
    weights = LazyTensor.new(np.random.default_rng(1).uniform(-1, 1, y.shape)).to_dtype(y.dtype)
    grads = (y * weights).sum_all().backward()
    # The value beside its gradient is computed by the graph that backward has rewritten.
    results = [alone, y.eval(), *(grads.get(v) for v in variables if isinstance(v, Var))]
    return [tensor.to_dtype("f64").numpy() for tensor in results if tensor is not None]


def test_every_rule_has_an_example_that_it_fires_in() -> None:
    for each in PASSES:
        fired = set()
        for example in each.examples:
            log = Log()
            structure = survey([recorded(example, operands(example, example.dtypes[0]))._node])
            with where_planned(example):
                apply_rules(terms_of(structure), log)
            fired |= {entry.rule for entry in log.fired}
        assert {rule.name for rule in each.rules} <= fired
        assert each.rules == () or any(example.because for example in each.examples), each.name
