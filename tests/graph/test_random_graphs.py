"""Random graphs, rewritten and as they were recorded: values, gradients, held values, compiled functions."""

from __future__ import annotations

import os
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, eval_all, features
from metal_candle.graph.node import topological_order
from metal_candle.settings import CHECK

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graph import FLOATS, SHAPES, build, steps

EPSILON = {DType.F32: 2.0**-23, DType.F16: 2.0**-10, DType.BF16: 2.0**-7}
ODD = [1e4, -3e4, 1e-4, -1e-7, 0.0, -0.0, 1e3]
EXAMPLES = int(os.environ.get("METAL_CANDLE_TEST_EXAMPLES", "60"))


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """A program, the dtypes and values of its leaves, which values are results and which are held."""
    program = draw(steps)
    odd = draw(st.integers(0, 4)) == 0
    # F16 overflows on the way as soon as a value is huge, in one order of the operations and not in the other.
    dtype = draw(st.sampled_from([DType.F32, DType.F32, DType.BF16] if odd else [DType.F32, DType.F32, *FLOATS]))
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


def recorded(graph: dict[str, Any], leaves: list[Any], wide: bool = False) -> list[Any]:
    """Every value of the graph of these leaves."""
    floats = [LazyTensor.from_tensor(leaf) for leaf in leaves]
    dtype = DType.F64 if wide else floats[0].dtype
    floats[-1] = floats[-1].to_dtype("i64").to_dtype("u8").to_dtype(dtype)
    return build(graph["program"], floats, wide)


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


def values_of(graph: dict[str, Any], leaves: list[Any], wide: bool = False) -> list[np.ndarray]:
    values = recorded(graph, leaves, wide)
    outputs = [values[i] for i in graph["outputs"]]
    held = [values[i] for i in graph["held"]]
    del values
    above = set(topological_order([output._node for output in outputs]))
    results = eval_all(outputs)
    for tensor in held:
        assert tensor.is_evaluated() or tensor._node not in above
    return [t.to_dtype("f64").numpy() for t in (*results, *[tensor.eval() for tensor in held])]


def gradients_of(graph: dict[str, Any], leaves: list[Any], wide: bool = False) -> list[np.ndarray | None]:
    values = recorded(graph, leaves, wide)
    terms = [values[i].to_dtype("f64" if wide else "f32") for i in graph["outputs"]]
    held = [values[i] for i in graph["held"]]
    del values
    loss = sum((term.cos() * 0.5).sum_all() for term in terms)
    grads = loss.backward()
    found = [grads.get(leaf) for leaf in leaves if isinstance(leaf, Var)]
    return [None if g is None else g.to_dtype("f64").numpy() for g in (*found, *[tensor.eval() for tensor in held])]


def compare(found: list[Any], plain: list[Any], exact: list[Any], nudged: list[Any], dtypes: set[DType]) -> None:
    """That ``found`` is as near to ``exact`` as ``plain`` is.

    Both round, in other places: allowed is a multiple of what ``plain`` is off by, of what moving the leaves by some
    roundings makes, and of a rounding of the largest element. Where only one of them is no number, it is ``plain``.
    """
    epsilon = max(EPSILON[dtype] for dtype in dtypes)
    for got, off, want, moved in zip(found, plain, exact, nudged):
        assert (got is None) == (off is None) == (want is None)
        if got is None:
            continue
        with np.errstate(all="ignore"):
            finite = np.isfinite(want) & np.isfinite(moved)
            error, other, shift = (np.where(finite, np.abs(a - want), 0.0) for a in (got, off, moved))
        lost = finite & np.isfinite(off) & ~np.isfinite(got)
        assert not lost.any(), (got, off, want)
        both = np.isfinite(off) & np.isfinite(got) & finite
        scale = np.abs(want[both]).max(initial=1e-6)
        allowed = 32 * (other[both].max(initial=0.0) + shift[both].max(initial=0.0) + epsilon * scale)
        assert (error[both] <= allowed).all(), (got, off, want, allowed)
        gained = finite & ~np.isfinite(off) & np.isfinite(got)
        assert (error[gained] <= 0.05 * np.abs(want[gained]) + allowed).all(), (got, off, want)
        neither = ~finite & ~np.isfinite(off)
        if not (neither <= ~np.isfinite(got)).all():
            raise AssertionError((got, off, want))


def dtypes_in(values: list[Any]) -> set[DType]:
    """The narrow float dtypes that occur."""
    return {value.dtype for value in values} - {DType.F64, DType.U8}


@given(graph=graphs())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_rewriting_keeps_values_and_gradients(graph: dict[str, Any]) -> None:
    with CHECK.override("1"), np.errstate(all="ignore"):
        leaves = leaves_of(graph)
        dtypes = dtypes_in(recorded(graph, leaves))
        nudge = 4 * max(EPSILON[dtype] for dtype in dtypes)
        for measure in (values_of, gradients_of):
            with features.disabled("rewrite"):
                plain = measure(graph, leaves)
                exact = measure(graph, widened(leaves), True)
                nudged = measure(graph, widened(leaves, nudge), True)
            compare(measure(graph, leaves), plain, exact, nudged, dtypes)
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
                nudged = measure(graph, widened(leaves, 1e-13), True)
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
