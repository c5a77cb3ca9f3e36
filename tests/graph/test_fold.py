"""Folding: modules as boxes, never a cycle, never more than asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor
from metal_candle.graph import scope
from metal_candle.graph.box import Box
from metal_candle.graph.contract import contract, in_order
from metal_candle.graph.fold import Folded, common, fold
from metal_candle.graph.node import GraphNode, topological_order

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[list[int]], list[str | None]]:
    """Inputs and labels of up to 40 items; each uses up to three before it."""
    count = draw(st.integers(1, 40))
    inputs = [draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else [] for i in range(count)]
    labels = draw(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=count, max_size=count))
    return inputs, labels


def quotient(inputs: Sequence[Sequence[int]], box_of: Sequence[int]) -> set[tuple[int, int]]:
    edges = {(box_of[s], box_of[i]) for i, sources in enumerate(inputs) for s in sources}
    return {(a, b) for a, b in edges if a != b}


@settings(deadline=None, max_examples=300)
@given(graphs())
def test_a_contracted_graph_has_no_cycle(graph: tuple[list[list[int]], list[str | None]]) -> None:
    inputs, labels = graph
    box_of = contract(inputs, labels)
    assert box_of is not None
    count = max(box_of) + 1
    assert set(box_of) == set(range(count))
    for box in range(count):
        inside = [labels[i] for i in range(len(inputs)) if box_of[i] == box]
        assert len(inside) == 1 or (len(set(inside)) == 1 and inside[0] is not None), "one label, or one item"
    edges = quotient(inputs, box_of)
    order = in_order(count, edges, range(count))
    assert sorted(order) == list(range(count)), "what is on a cycle would be missing"
    assert all(order.index(a) < order.index(b) for a, b in edges)
    assert contract(inputs, labels, most=count) == box_of
    assert contract(inputs, labels, most=count - 1) is None


@settings(deadline=None, max_examples=100)
@given(graphs())
def test_labels_that_follow_on_each_other_are_not_split(graph: tuple[list[list[int]], list[str | None]]) -> None:
    inputs, _ = graph
    third = len(inputs) // 3 + 1
    runs = [str(i // third) for i in range(len(inputs))]
    box_of = contract(inputs, runs)
    assert box_of is not None
    # Not even where another module's items stand between in the order of recording, if these depend on nothing of it.
    operations = [i for i in range(len(inputs)) if inputs[i]]
    assert len({box_of[i] for i in operations}) == len({runs[i] for i in operations})


def test_a_label_that_is_entered_again_is_split() -> None:
    #  0 -> 1(a) -> 2 -> 3(a), and 4(a), which uses the last two: one box would reach itself through 2.
    assert contract([[], [0], [1], [2], [1, 3]], [None, "a", None, "a", "a"]) == [3, 0, 1, 2, 2]


def test_a_label_with_something_unrelated_between_is_not() -> None:
    # 3(a) uses 2, which came later than 1(a) but does not depend on it.
    assert contract([[], [0], [0], [1, 2]], [None, "a", "b", "a"]) == [2, 0, 1, 0]


def test_leaves_are_in_the_first_box_that_uses_them() -> None:
    assert contract([[], [], [0], [1, 2]], ["a", "b", "a", "b"]) == [0, 1, 0, 1]
    assert contract([[], [0]], ["a", "b"]) == [1, 0], "of another label: on its own"
    assert contract([[]], ["a"]) == [0]


def layered(layers: int, again: bool = False) -> list[GraphNode]:
    """x, then ``layers`` of norm, mlp and a residual; with ``again``, the first mlp's scope is entered at the end."""
    with scope("Model"):
        x = LazyTensor.new([1.0, 2.0]).abs()
        for i in range(layers):
            with scope(f"layers.{i}"):
                with scope("norm"):
                    y = x.sqr().exp()
                with scope("mlp"):
                    y = y * LazyTensor.new([3.0, 4.0])
                    y = y.neg().exp()
                x = x + y
        if again:
            with scope("layers.0.mlp"):
                x = x.sqr().neg()
    return topological_order([x._node])


def titles(folded: Folded) -> list[str]:
    return [box.title for box in folded.boxes]


def test_the_greatest_depth_that_fits() -> None:
    nodes = layered(3)
    # A leaf and an operation, and for each layer two nodes of norm, four of mlp (with its leaf) and the sum.
    assert len(nodes) == 23
    assert len(fold(nodes, 23).boxes) == 23
    by_part = ["layers.0.norm — 2 nodes", "layers.0.mlp — 4 nodes", "add"]
    assert titles(fold(nodes, 22))[:5] == ["input", "abs", *by_part]
    assert len(fold(nodes, 11).boxes) == 11
    assert titles(fold(nodes, 10)) == ["input", "abs", *(f"layers.{i} — 7 nodes" for i in range(3))]
    assert titles(fold(nodes, 3)) == ["input", "abs", "layers — 21 nodes"]
    assert titles(fold(nodes, 2)) == ["Model — 23 nodes"]


def test_a_depth_and_no_folding() -> None:
    nodes = layered(3)
    assert titles(fold(nodes, None, 3)) == ["input", "abs", *(f"layers.{i} — 7 nodes" for i in range(3))]
    assert fold(nodes, None).boxes == fold(nodes, None, False).boxes == fold(nodes, None, 9).boxes
    assert [box.kind for box in fold(nodes, 10, False).boxes] == ["node"] * 4 + ["rest"] + ["node"] * 4
    assert [box.kind for box in fold(nodes, 6, 4).boxes] == ["node", "node", "rest", "module", "node"]


def test_what_a_box_knows() -> None:
    nodes = layered(2)
    _, start, norm, mlp, *_ = fold(nodes, 21, 4).boxes
    assert (norm.scope, norm.name, norm.result, norm.state) == (
        "Model.layers.0.norm",
        f"m{norm.nodes[0].id}",
        "[2] f32",
        "lazy",
    )
    assert norm.results == (norm.nodes[-1],)
    assert norm.sources == start.results == (nodes[1],)
    assert mlp.sources == (norm.nodes[-1],)
    assert [node.operation.name() for node in mlp.nodes] == ["input", "mul", "neg", "exp"]
    assert not mlp.evaluated


def test_a_module_entered_again_is_split() -> None:
    folded = fold(layered(2, again=True), None, 4)
    assert [title for title in titles(folded) if "layers.0.mlp" in title] == [
        "layers.0.mlp (1 of 2) — 4 nodes",
        "layers.0.mlp (2 of 2) — 2 nodes",
    ]
    assert all(a < b for a, b in folded.edges)


def test_a_leaf_of_several_modules_stays_outside() -> None:
    shared = LazyTensor.new([1.0])
    x = shared
    for i in range(3):
        with scope(f"net.{i}"):
            x = (x + shared).sqr()
    assert titles(fold(topological_order([x._node]), None, 2)) == ["input", *(f"{i} — 2 nodes" for i in range(3))]


def test_parts_that_are_evaluated() -> None:
    with scope("m"):
        x = LazyTensor.new([1.0, 2.0])
        held = x.exp()
        y = held.sqr() + x
    [box] = fold(topological_order([y._node]), None, 1).boxes
    assert box.state == "lazy"
    held.eval()
    [box] = fold(topological_order([y._node]), None, 1).boxes
    assert box.state == "1 of 3 evaluated"
    y.eval()
    assert Box("module", (held._node, y._node)).state == "evaluated"


@settings(deadline=None, max_examples=40)
@given(graphs(), st.integers(1, 45), st.sampled_from([None, False, 1, 2]))
def test_edges_of_what_is_folded_lead_forward(
    graph: tuple[list[list[int]], list[str | None]], limit: int, depth: Any
) -> None:
    inputs, labels = graph
    values: list[LazyTensor] = []
    for i, sources in enumerate(inputs):
        with scope(f"net.{labels[i] or 'own'}"):
            values.append(
                LazyTensor.stack([values[s] for s in sources], 0).sum(0) if sources else LazyTensor.new([1.0])
            )
    nodes = topological_order([value._node for value in values])
    folded = fold(nodes, limit, depth)
    assert all(a < b for a, b in folded.edges)
    assert sorted(node.id for box in folded.boxes for node in box.nodes) == [node.id for node in nodes]
    assert len(folded.boxes) <= max(limit, 3)
    place = {node: i for i, box in enumerate(folded.boxes) for node in box.nodes}
    needed = {(place[source], place[node]) for node in nodes for source in node.inputs}
    assert {edge for edge in needed if edge[0] != edge[1]} == set(folded.edges)


def test_common_levels() -> None:
    assert common([("a", "b", "c"), ("a", "b"), ("a", "b", "d")]) == ("a", "b")
    assert common([("a",), ()]) == ()


@pytest.mark.parametrize("wrong", [True, 0, -1, "layers", 1.5])
def test_fold_refuses(wrong: Any) -> None:
    with pytest.raises(mc.Error, match=r"graph: got fold=.*; takes None, False or a depth of modules from 1"):
        fold(layered(1), None, wrong)
    with pytest.raises(mc.Error, match="graph: got limit=0; takes None or a number of nodes from 1"):
        fold(layered(1), 0)
