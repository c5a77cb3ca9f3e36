"""``explain()``: what an evaluation would do, and why a fast path is not taken."""

from __future__ import annotations

import logging
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, features, settings
from metal_candle.graph.explain import Explanation

import numpy as np
import pytest


def lazies(*shapes: tuple[int, ...]) -> list[LazyTensor]:
    rng = np.random.default_rng(0)
    return [LazyTensor.new(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def low_rank() -> tuple[LazyTensor, ...]:
    return tuple(lazies((5, 16), (16, 4), (4, 16), (5, 16)))


def lines(explanation: str) -> list[str]:
    return [" ".join(line.split()) for line in explanation.splitlines()]


def test_the_graph_before_and_after_rewriting() -> None:
    x, a, b, base = low_rank()
    y = base + x.matmul(a).matmul(b) * 0.5
    said = lines(y.explain())
    names = {name: f"%{tensor.node_id():d}" for name, tensor in (("x", x), ("a", a), ("b", b), ("base", base))}
    assert said[0] == "8 nodes: 4 to compute (1.4 kFLOP, 2.9 kB), 4 evaluated"
    assert f"{names['x']} = input [5, 16] f32, evaluated" in said
    assert "rewritten: 1 operation (1.4 kFLOP, 1.5 kB)" in said
    last = f"%{y.node_id():d}"
    inputs = ", ".join(names[name] for name in ("base", "x", "a", "b"))
    assert f"{last} = add_lora(scale=0.5) <- {inputs} [5, 16] f32, lazy" in said
    applied = said[said.index("rules that were applied:") + 1 :]
    assert applied[0].startswith("lora at %")
    assert applied[1].startswith(f"add_lora at {last}: add[{names['base']}, lora] -> add_lora(scale=0.5)[")
    assert said[-1] == "evaluation: in one piece: one result"
    assert any(line.startswith(f"add_lora at {last}: add_lora [(5, 16)") for line in said)
    assert not y.is_evaluated(), "explaining computes nothing"


def test_why_a_fast_path_is_not_taken() -> None:
    x, a, b, base = low_rank()
    hidden = x.matmul(a)
    y = base + hidden.matmul(b) * 0.5
    assert "matmul [5, 4] stays: somebody holds its value" in y.explain()
    assert "build the expression in a function, `del` the name, or use compile" in y.explain()
    wide = lazies((16, 16))[0]
    # Not inside an assert: pytest holds what is in there.
    z = x.matmul(wide).matmul(wide) * 0.5
    assert "the inner size 16 is no low rank for a product from 16 to 16" in z.explain()


def test_what_is_switched_off_is_said() -> None:
    x, a, b, _ = low_rank()
    y = x.matmul(a).matmul(b) * 0.5
    with features.disabled("rewrite"):
        assert "not rewritten: feature rewrite is off" in y.explain()
    with features.disabled("rewrite.lora"):
        assert "switched off: lora\nno rule applies" in y.explain()
    with settings.KERNELS.override("reference"):
        assert "reference, METAL_CANDLE_KERNELS=reference" in x.softmax(-1).explain()
    assert "reference, fewer than 8192 elements" in x.softmax(-1).explain()
    assert "rational, float32 on the CPU" in lazies((64, 256))[0].softmax(-1).explain()


def test_what_is_evaluated_already() -> None:
    (x,) = lazies((3, 4))
    y = x.exp()
    y.eval()
    assert lines(y.explain())[0] == "1 node: 0 to compute (0 FLOP, 0 B), 1 evaluated"
    z = y + x
    assert lines(z.explain())[0] == "3 nodes: 1 to compute (12 FLOP, 144 B), 2 evaluated"
    assert isinstance(z.explain(), Explanation)
    assert repr(z.explain()) == z.explain()


def test_what_a_gradient_would_do() -> None:
    w = Var(np.ones((4, 16), np.float32))
    x, a, _, base = low_rank()
    loss = (base + x.matmul(a).matmul(LazyTensor.from_tensor(w)) * 0.5).sqr().sum_all()
    loss.backward()
    text = loss.explain()
    assert "add_lora(scale=0.5)" in text, "backward has rewritten the graph"
    assert "variable" in text


def test_large_graphs_stay_readable() -> None:
    (x,) = lazies((2, 2))
    y = x
    for i in range(5000):
        y = (y + float(i + 1)).exp()
    text = y.explain()
    assert len(text) < 20_000
    assert "10,001 nodes: 10,000 to compute" in text


def test_pictures_of_a_lazy_tensor() -> None:
    (x,) = lazies((2, 2))
    y = x.exp() + 1.0
    assert y.to_dot().startswith("digraph ")
    assert y.to_mermaid().startswith("flowchart TD")
    assert y._repr_svg_() == y.to_svg()
    assert y.to_svg().startswith("<svg ")
    assert not y.is_evaluated()


@pytest.mark.parametrize("topic", ["graph", "rewrite", "kernel", "compile"])
def test_debug_topics_log(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = {
        "graph": "planned 8 nodes as 1 operation",
        "rewrite": "lora x 1, add_lora x 1",
        "kernel": "add_lora [(5, 16), (5, 16), (16, 4), (4, 16)]: at rank, addmm",
        "compile": "traced <lambda>: 1 operations of 2 nodes",
    }
    x, a, b, base = low_rank()
    with caplog.at_level(logging.INFO), settings.DEBUG.override(topic):
        (base + x.matmul(a).matmul(b) * (0.5 + 0.001 * len(topic))).eval()
        mc.compile(lambda x: x * 2.0)(Tensor([1.0]))
    found = [record.getMessage() for record in caplog.records if record.name == f"metal_candle.{topic}"]
    assert any(expected[topic] in message for message in found), found
    assert {record.name for record in caplog.records} == {f"metal_candle.{topic}"}


def test_what_cannot_be_rewritten_says_so() -> None:
    from metal_candle.nn.kv_cache import CacheAppend, KvBuffer

    buffer: Any = KvBuffer()
    (x,) = lazies((1, 2, 3, 4))
    y = x._record(CacheAppend(buffer))
    assert "not rewritten: cache_append changes what it is given, so that order matters" in y.explain()


def test_reasons_that_can_be_acted_on_come_first() -> None:
    x = LazyTensor.randn(0.0, 1.0, (1, 8, 32))
    weights = [LazyTensor.randn(0.0, 0.1, (32, 32)) for _ in range(4)]
    kept = []
    for _ in range(8):
        q, k, v = (x.broadcast_matmul(w.t()).reshape((1, 8, 4, 8)).transpose(1, 2) for w in weights[:3])
        probabilities = (q.matmul(k.t()) * 0.35).softmax(-1)
        kept.append(probabilities)
        x = x + probabilities.matmul(v).transpose(1, 2).reshape((1, 8, 32)).broadcast_matmul(weights[3].t())
    text = x.explain()
    said = lines(text)
    first = said[said.index("rules that were not:") + 1]
    assert first.startswith("attention at %")
    assert "softmax [1, 4, 8, 8] stays: somebody holds its value" in first
    assert "turn_nothing" not in text
    assert "turn_nothing" in x.explain(limit=None)
    assert "more" not in x.explain(limit=None).split("rules that were not:")[1]
    with pytest.raises(ValueError, match="explain: got limit 'x'; takes a whole number from 1, or None for all"):
        x.explain("x")  # type: ignore[arg-type]


def test_what_was_computed_is_not_counted_though_its_inputs_are_kept() -> None:
    """A gradient may yet need them."""
    w = Var([[1.0, 2.0]])
    loss = (LazyTensor.from_tensor(w) * 2.0).exp().sum_all()
    loss.eval()
    assert loss.explain().startswith("4 nodes: 0 to compute (0 FLOP, 0 B), 4 evaluated")
    y = (LazyTensor.from_tensor(w) * 2.0).sin()
    y.eval()
    z = y.neg().neg().exp()
    assert "rules that were applied:" in z.explain()


def test_what_was_merged_is_named() -> None:
    (x,) = lazies((2, 3))
    y = x.exp() * x.exp().sin()
    first = min(node.id for node in mc.graph.ComputationGraph(y).nodes() if node.operation.name() == "exp")
    assert f": exp[%{x.node_id():d}] -> %{first}" in y.explain()
