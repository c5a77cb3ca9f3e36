"""Text, Graphviz and Mermaid: modules as clusters, folded modules, the middle left out, and awkward labels."""

from __future__ import annotations

import re
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor
from metal_candle.graph import ComputationGraph, Operation, scope
from metal_candle.graph.node import GraphNode, topological_order
from metal_candle.graph.render import dot, mermaid, text

import pytest


def net(layers: int) -> LazyTensor:
    """exp outside; then layers of a norm and a sum, and a head that only calls another module."""
    x = LazyTensor.new([1.0, 2.0]).exp()
    for i in range(layers):
        with scope(f"Net.layers.{i}"):
            with scope("norm"):
                y = x.sqr() * LazyTensor.new([3.0, 4.0])
            x = x + y
    with scope("Net.head.linear"):
        return x.neg()


INPUT = 'style="rounded,filled", fillcolor="#e3ebf6", color="#5b7aa8"];'


def nodes_of(y: LazyTensor) -> list[GraphNode]:
    return topological_order([y._node])


def numbered(picture: str, nodes: list[GraphNode]) -> str:
    """With the place of a node in the graph for its id."""
    place = {node.id: i for i, node in enumerate(nodes)}
    return re.sub(r"(?<=[%nm])(\d+)\b", lambda match: str(place.get(int(match[0]), match[0])), picture)


def lines(picture: str, nodes: list[GraphNode]) -> list[str]:
    return [" ".join(line.split()) for line in numbered(picture, nodes).splitlines()]


def test_text_of_folded_modules() -> None:
    nodes = nodes_of(net(2))
    assert lines(text(nodes, 8), nodes) == [
        "%0 = input [2] f32, evaluated",
        "%1 = exp <- %0 [2] f32, lazy",
        "%4 = layers.0.norm — 3 nodes <- %1 [2] f32, lazy",
        "%5 = add <- %1, %4 [2] f32, lazy, in Net.layers.0",
        "%8 = layers.1.norm — 3 nodes <- %5 [2] f32, lazy",
        "%9 = add <- %5, %8 [2] f32, lazy, in Net.layers.1",
        "%10 = neg <- %9 [2] f32, lazy, in Net.head.linear",
    ]
    assert lines(text(nodes, 5), nodes)[2:] == [
        "%5 = layers.0 — 4 nodes <- %1 [2] f32, lazy",
        "%9 = layers.1 — 4 nodes <- %5 [2] f32, lazy",
        "%10 = neg <- %9 [2] f32, lazy, in Net.head.linear",
    ]


def test_text_of_the_ends() -> None:
    nodes = nodes_of(net(2))
    assert lines(text(nodes, 4, False), nodes) == [
        "%0 = input [2] f32, evaluated",
        "… 11 nodes in all, 3 evaluated: 3 input, 2 sqr, 2 mul, 2 add, 1 exp, 1 neg",
        "%10 = neg <- %9 [2] f32, lazy, in Net.head.linear",
    ]


def test_a_box_with_many_results_and_inputs() -> None:
    tensors = [LazyTensor.new([float(i)]).exp() for i in range(10)]
    with scope("many"):
        outputs = [LazyTensor.cat(tensors, 0).mul_scalar(float(i)) for i in range(9)]
    nodes = topological_order([y._node for y in outputs])
    [line] = [line for line in lines(text(nodes, None, 1), nodes) if "many" in line]
    left, right = line.split(" = ")
    assert left.endswith("… 1 more")
    assert left.count("%") == 8
    assert right.startswith("many — 18 nodes <- %1, ")
    assert "… 2 more" in right
    assert "[10] f32; … 5 more" in right


def test_dot_has_a_cluster_for_each_module() -> None:
    nodes = nodes_of(net(2))
    found = lines(dot(nodes), nodes)
    assert found[3:24] == [
        'n0 [label="input\\n[2] f32", ' + INPUT,
        'n1 [label="exp\\n[2] f32"];',
        "subgraph cluster_0 {",
        'label="Net";',
        "style=rounded;",
        "subgraph cluster_1 {",
        'label="layers.0";',
        "style=rounded;",
        'n5 [label="add\\n[2] f32"];',
        "subgraph cluster_2 {",
        'label="norm";',
        "style=rounded;",
        'n2 [label="sqr\\n[2] f32"];',
        'n3 [label="input\\n[2] f32", ' + INPUT,
        'n4 [label="mul\\n[2] f32"];',
        "}",
        "}",
        "subgraph cluster_3 {",
        'label="layers.1";',
        "style=rounded;",
        'n9 [label="add\\n[2] f32"];',
    ]
    assert 'label="head.linear";' in found, "a module that only calls another is one cluster with it"
    assert sum("->" in line for line in found) == sum(len(node.inputs) for node in nodes)
    assert dot(nodes).count("{") == dot(nodes).count("}")


def test_folded_modules_in_dot_and_mermaid() -> None:
    nodes = nodes_of(net(2))
    found = lines(dot(nodes, 5), nodes)
    assert 'm2 [label="layers.0 — 4 nodes\\n[2] f32", shape=tab];' in found
    assert {"n1 -> m2;", "m2 -> m6;", "m6 -> n10;"} <= set(found)
    assert lines(mermaid(nodes, 5), nodes) == [
        "flowchart TD",
        'n0(["input<br/>[2] f32"])',
        'n1["exp<br/>[2] f32"]',
        'subgraph s0["Net"]',
        'm2[["layers.0 — 4 nodes<br/>[2] f32"]]',
        'm6[["layers.1 — 4 nodes<br/>[2] f32"]]',
        'subgraph s1["head.linear"]',
        'n10["neg<br/>[2] f32"]',
        "end",
        "end",
        "n0 --> n1",
        "n1 --> m2",
        "m2 --> m6",
        "m6 --> n10",
        "classDef input fill:#e3ebf6,stroke:#5b7aa8,color:#1a202c",
        "class n0 input",
        "classDef output stroke-width:3px",
        "class n10 output",
    ]


def test_a_weight_stands_with_its_module_and_a_shared_one_around() -> None:
    own, shared = LazyTensor.new([1.0]), LazyTensor.new([2.0])
    with scope("net.first"):
        x = own * shared
    with scope("net.second"):
        x = x + shared
    nodes = nodes_of(x)
    assert lines(mermaid(nodes), nodes)[1:9] == [
        'subgraph s0["net"]',
        'n1(["input<br/>[1] f32"])',
        'subgraph s1["first"]',
        'n0(["input<br/>[1] f32"])',
        'n2["mul<br/>[1] f32"]',
        "end",
        'subgraph s2["second"]',
        'n3["add<br/>[1] f32"]',
    ]


def test_what_is_left_out_is_one_box() -> None:
    x = LazyTensor.new([1.0])
    for _ in range(99):
        x = x.exp()
    nodes = nodes_of(x)
    for picture, edge in ((dot(nodes, 20), "->"), (mermaid(nodes, 20), "-->")):
        found = lines(picture, nodes)
        assert sum(edge in line for line in found) == 18
        assert any(line.startswith(f"n8 {edge} more") for line in found)
        assert any(line.startswith(f"more {edge} n91") for line in found)
        assert "100 nodes in all, 1 evaluated: 99 exp, 1 input" in picture


def test_awkward_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(Operation.Exp)
    monkeypatch.setattr(kind, "describe", lambda self: 'exp(f=<lambda>, "a&b"#1,\n  [\\])')
    with scope('the "net"'):
        nodes = nodes_of(LazyTensor.new([1.0]).exp())
    assert '[label="exp(f=<lambda>, \\"a&b\\"#1, [\\\\])\\n[1] f32", penwidth=2.5]' in dot(nodes)
    assert 'label="the \\"net\\"";' in dot(nodes)
    assert '["exp(f=#lt;lambda#gt;, #quot;a#amp;b#quot;#35;1, [\\])<br/>[1] f32"]' in mermaid(nodes)
    assert 'subgraph s0["the #quot;net#quot;"]' in mermaid(nodes)
    assert len(text(nodes).splitlines()) == 2


def test_the_graph_passes_its_arguments_on() -> None:
    graph = ComputationGraph(net(3))
    nodes = graph.nodes()
    for method, function in ((graph.to_dot, dot), (graph.to_mermaid, mermaid)):
        given: Any = method
        assert given() == function(nodes)
        assert given(6) == function(nodes, 6)
        assert given(None, fold=2) == function(nodes, None, 2) != function(nodes)
        with pytest.raises(mc.Error, match="graph: got fold='all'; takes None, False or a depth"):
            given(fold="all")
    assert graph.explain(6) == text(nodes, 6)
