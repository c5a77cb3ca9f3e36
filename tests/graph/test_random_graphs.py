"""Random graphs, rewritten and as they were recorded: values, gradients, held values, compiled functions."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, eval_all, features
from metal_candle.graph.node import topological_order
from metal_candle.graph.plans import apply_rules
from metal_candle.graph.rewrite import Log
from metal_candle.graph.rewrites import PASSES
from metal_candle.graph.structure import survey
from metal_candle.graph.term import terms_of
from metal_candle.kernels import custom
from metal_candle.settings import CHECK

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graph import FLOATS, SHAPES, Rounding, build, draw_program, steps
from rewriting import Gpu

EPSILON = {DType.F32: 2.0**-23, DType.F16: 2.0**-10, DType.BF16: 2.0**-7}
# The distance of two numbers next to 0.
LEAST = {DType.F32: 0.0, DType.F16: 2.0**-24, DType.BF16: 0.0}
ODD = [1e4, -3e4, 1e-4, -1e-7, 0.0, -0.0, 1e3]
EXAMPLES = int(os.environ.get("METAL_CANDLE_TEST_EXAMPLES", "60"))


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """A program, the dtypes and values of its leaves, which values are results and which are held."""
    program = draw(steps)
    odd = draw(st.integers(0, 4)) == 0
    dtype = draw(st.sampled_from([DType.F32, DType.F32, *FLOATS]))
    total = len(SHAPES) + 1 + len(program)
    return {
        "program": program,
        "dtypes": [dtype] * len(SHAPES),
        "seed": draw(st.integers(0, 2**16)),
        "odd": odd,
        "outputs": sorted({total - 1, *draw(st.lists(st.integers(len(SHAPES) + 1, total - 1), max_size=2))}),
        "held": draw(st.lists(st.integers(len(SHAPES) + 1, total - 1), max_size=3)),
    }


def leaves_of(graph: dict[str, Any]) -> list[Any]:
    """Variables and tensors of every shape, and one of integers as floats."""
    rng = np.random.default_rng(graph["seed"])
    made: list[Any] = []
    for i, (shape, dtype) in enumerate(zip(SHAPES, graph["dtypes"])):
        values = rng.normal(size=shape)
        if graph["odd"]:
            values = np.where(rng.random(shape) < 0.2, rng.choice(ODD, shape), values)
        tensor = Tensor(values.astype(np.float32)).to_dtype(dtype)
        made.append(Var.from_tensor(tensor) if i % 2 == 0 else tensor)
    made.append(Tensor(rng.integers(0, 5, (3, 4)).astype(np.uint8)))
    return made


def recorded(
    graph: dict[str, Any], leaves: list[Any], wide: bool = False, rounding: Rounding | None = None
) -> list[Any]:
    """Every value of the graph of these leaves."""
    floats = [LazyTensor.from_tensor(leaf) for leaf in leaves]
    dtype = DType.F64 if wide else floats[0].dtype
    floats[-1] = floats[-1].to_dtype("i64").to_dtype("u8").to_dtype(dtype)
    return build(graph["program"], floats, wide, rounding)


def widened(leaves: list[Any], nudge: float = 0.0) -> list[Any]:
    """The leaves in float64, moved relatively by up to ``nudge``."""
    rng = np.random.default_rng(1)
    made: list[Any] = []
    for leaf in leaves:
        if leaf.dtype.is_int():
            made.append(leaf)
            continue
        values = leaf.to_dtype("f64").numpy()
        tensor = Tensor.new(values * (1 + nudge * rng.uniform(-1, 1, values.shape)), dtype="f64")
        made.append(Var.from_tensor(tensor) if isinstance(leaf, Var) else tensor)
    return made


def rounded_by(size: float, least: float, seed: int = 0) -> Rounding:
    """Moves each element by up to ``size`` of itself and by up to ``least``, as rounding what a step makes does."""
    rng = np.random.default_rng(seed)

    def rounding(x: Any) -> Any:
        factors, terms = (LazyTensor.new(rng.uniform(-1, 1, tuple(x.shape)), dtype="f64") for _ in range(2))
        return x * (factors * size + 1.0) + terms * least

    return rounding


def values_of(
    graph: dict[str, Any], leaves: list[Any], wide: bool = False, rounding: Rounding | None = None
) -> list[np.ndarray]:
    values = recorded(graph, leaves, wide, rounding)
    outputs = [values[i] for i in graph["outputs"]]
    held = [values[i] for i in graph["held"]]
    del values
    above = set(topological_order([output._node for output in outputs]))
    results = eval_all(outputs)
    for tensor in held:
        assert tensor.is_evaluated() or tensor._node not in above
    return [t.to_dtype("f64").numpy() for t in (*results, *[tensor.eval() for tensor in held])]


def gradients_of(
    graph: dict[str, Any], leaves: list[Any], wide: bool = False, rounding: Rounding | None = None
) -> list[np.ndarray | None]:
    values = recorded(graph, leaves, wide, rounding)
    terms = [values[i].to_dtype("f64" if wide else "f32") for i in graph["outputs"]]
    held = [values[i] for i in graph["held"]]
    del values
    loss = sum((term.cos() * 0.5).sum_all() for term in terms)
    grads = loss.backward()
    found = [grads.get(leaf) for leaf in leaves if isinstance(leaf, Var)]
    return [None if g is None else g.to_dtype("f64").numpy() for g in (*found, *[tensor.eval() for tensor in held])]


def shifts(
    measure: Callable[..., list[Any]], graph: dict[str, Any], leaves: list[Any], dtypes: set[DType], draws: int
) -> list[Any]:
    """How far results move, at most, where the leaves and every step do by some roundings of ``dtypes``."""
    nudge, least = 4 * max(EPSILON[dtype] for dtype in dtypes), max(LEAST[dtype] for dtype in dtypes)
    exact = measure(graph, widened(leaves), True)
    largest: list[Any] = [None if want is None else np.zeros_like(want) for want in exact]
    for seed in range(draws):
        moved = measure(graph, widened(leaves, nudge), True, rounded_by(nudge, least, seed))
        for i, (want, other) in enumerate(zip(exact, moved)):
            if want is not None:
                largest[i] = np.maximum(largest[i], np.abs(other - want))
    return largest


def stays_in_range(graph: dict[str, Any], leaves: list[Any]) -> bool:
    """Whether every step, unrewritten, is near what it is in float64."""
    with features.disabled("rewrite"):
        steps = eval_all(recorded(graph, leaves))
        exact = eval_all(recorded(graph, widened(leaves), True))
    for step, right in zip(steps, exact):
        got, want = step.to_dtype("f64").numpy(), right.to_dtype("f64").numpy()
        if not (np.abs(got - want) <= 0.1 * np.abs(want).max(initial=0.0)).all():
            return False
    return True


def compare(
    found: list[Any],
    plain: list[Any],
    exact: list[Any],
    shifts: list[Any],
    dtypes: set[DType],
    tame: bool,
    values: bool,
) -> None:
    """That ``found`` is as near to ``exact`` as ``plain`` is.

    Both round, in other places: allowed is a multiple of what ``plain`` is off by, of ``shifts``, and of a rounding of
    the largest element. What is finite in ``plain`` is so in ``found``, if the graph is ``tame``: the squares of a
    float16 norm that overflow make it 0, which is finite and wrong, and hides what comes after. And of ``values``,
    not of gradients, what is no number even in float64 is not invented: the gradient of a spelled-out sigmoid is NaN
    where exp overflows, that of the operation is right there.
    """
    epsilon, least = max(EPSILON[dtype] for dtype in dtypes), max(LEAST[dtype] for dtype in dtypes)
    for got, off, want, shift in zip(found, plain, exact, shifts):
        assert (got is None) == (off is None) == (want is None)
        if got is None:
            continue
        finite = np.isfinite(want) & np.isfinite(shift)
        with np.errstate(all="ignore"):
            error, other = (np.where(finite, np.abs(a - want), 0.0) for a in (got, off))

        def roundings(at: Any, want: Any = want, shift: Any = shift) -> float:
            scale = float(np.abs(want[at]).max(initial=1e-6))
            return float(shift[at].max(initial=0.0)) + epsilon * scale + least

        both = np.isfinite(off) & np.isfinite(got) & finite
        lost = finite & np.isfinite(off) & ~np.isfinite(got)
        assert not (tame and lost.any()), (got, off, want)
        allowed = 32 * (float(other[both].max(initial=0.0)) + roundings(both))
        assert (error[both] <= allowed).all(), (got, off, want, allowed)
        gained = finite & ~np.isfinite(off) & np.isfinite(got)
        assert (error[gained] <= allowed + 32 * roundings(gained)).all(), (got, off, want, allowed)
        invented = ~np.isfinite(want) & ~np.isfinite(off) & np.isfinite(got)
        assert not (values and invented.any()), (got, off, want)


def dtypes_in(values: list[Any]) -> set[DType]:
    """The narrow float dtypes that occur."""
    return {value.dtype for value in values} - {DType.F64, DType.U8}


def test_every_rule_fires_in_random_graphs() -> None:
    rng = random.Random(0)
    fired: Counter[str] = Counter()
    for i in range(200):
        program = draw_program(rng)
        last = len(SHAPES) + len(program)
        outputs = [last, rng.randrange(len(SHAPES) + 1, last)]
        graph = {"program": program, "dtypes": [FLOATS[i % 3]] * len(SHAPES), "seed": i, "odd": False}
        values = recorded(graph, leaves_of(graph))
        for where in (nullcontext(), custom.using(Gpu())):
            log = Log()
            with where:
                apply_rules(terms_of(survey([values[output]._node for output in outputs])), log)
            fired.update(log.counted())
    rules = {rule.name for each in PASSES for rule in each.rules} | {"common_subexpression", "product_order"}
    # It wants more logits than these graphs have elements.
    assert rules - set(fired) == {"picked_head_log_softmax"}


@given(graph=graphs())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_rewriting_keeps_values_and_gradients(graph: dict[str, Any]) -> None:
    with CHECK.override("1"), np.errstate(all="ignore"):
        leaves = leaves_of(graph)
        dtypes = dtypes_in(recorded(graph, leaves))
        tame = stays_in_range(graph, leaves)
        for measure in (values_of, gradients_of):
            with features.disabled("rewrite"):
                plain = measure(graph, leaves)
                exact = measure(graph, widened(leaves), True)
                moved = shifts(measure, graph, leaves, dtypes, 1)
            found = measure(graph, leaves)
            try:
                compare(found, plain, exact, moved, dtypes, tame, measure is values_of)
            except AssertionError:
                # One draw may leave all as it is where another makes a step the larger of two.
                with features.disabled("rewrite"):
                    moved = shifts(measure, graph, leaves, dtypes, 16)
                compare(found, plain, exact, moved, dtypes, tame, measure is values_of)
            # Also where every value is nearly exact, so that nothing hides in what is allowed.
            for got, want in zip(measure(graph, widened(leaves), True), exact):
                assert (got is None) == (want is None)


@given(graph=graphs())
@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
def test_rewriting_in_float64_changes_next_to_nothing(graph: dict[str, Any]) -> None:
    with CHECK.override("1"), np.errstate(all="ignore"):
        leaves = widened(leaves_of({**graph, "odd": False}))
        for measure in (values_of, gradients_of):
            with features.disabled("rewrite"):
                plain = measure(graph, leaves, True)
                nudged = measure(graph, widened(leaves, 1e-13), True, rounded_by(1e-13, 0.0))
            for got, want, moved in zip(measure(graph, leaves, True), plain, nudged):
                assert (got is None) == (want is None)
                if got is not None and np.isfinite(want).all() and np.isfinite(moved).all():
                    scale = np.abs(want).max(initial=1.0)
                    allowed = 100 * np.abs(moved - want).max(initial=0.0) + 1e-10 * scale
                    np.testing.assert_allclose(got, want, rtol=0, atol=allowed)


@given(graph=graphs())
@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
def test_compiled_equals_lazy(graph: dict[str, Any]) -> None:
    with CHECK.override("1"), np.errstate(all="ignore"):
        leaves = leaves_of(graph)

        def function(*tensors: Any) -> list[Any]:
            values = recorded(graph, list(tensors))
            return [values[i] for i in graph["outputs"]]

        expected = eval_all(function(*leaves))
        compiled = mc.compile(function)
        for _ in range(2):
            for got, want in zip(compiled(*leaves), expected):
                got, want = (t.to_dtype("f64").numpy() for t in (got.eval(), want))
                np.testing.assert_array_equal(got, want)
