"""Drawings: valid XML, nothing overlaps, every edge downward, and all that is known in the tooltips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from metal_candle import LazyTensor, Tensor, Var
from metal_candle.graph import ComputationGraph, scope
from metal_candle.graph.layers import Placed, arrange
from metal_candle.graph.node import topological_order
from metal_candle.graph.svg import svg

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SVG = "{http://www.w3.org/2000/svg}"


def drawn(graph: Any, **how: Any) -> ElementTree.Element:
    """What is drawn, as XML."""
    return ElementTree.fromstring(ComputationGraph(graph).to_svg(**how))


def tooltips(picture: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in picture.iter(f"{SVG}title")]


def texts(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def chain(count: int) -> LazyTensor:
    x = LazyTensor.new([1.0, 2.0])
    for _ in range(count):
        x = x.exp()
    return x


def test_a_drawing() -> None:
    w = Var([[1.0], [2.0]])
    x = LazyTensor.new([[1.0, 2.0]])
    with scope("head"):
        product = x.matmul(LazyTensor.from_tensor(w))
    y = product.affine(2.0, -1.0)
    a, b, c, d = (node.id for node in ComputationGraph(y).nodes())
    picture = drawn(y)
    assert picture.tag == f"{SVG}svg"
    assert tooltips(picture) == [
        f"%{a} = input\n[2, 1] f32\nvariable, evaluated",
        f"%{b} = input\n[1, 2] f32\nevaluated",
        f"%{c} = matmul\n[1, 1] f32\nlazy\nfrom %{b}, %{a}\nin head",
        f"%{d} = affine(mul=2.0, add=-1.0)\n[1, 1] f32\nlazy\nfrom %{c}",
    ]
    assert texts(picture)[:4] == ["input", "variable", "to compute", "output"]
    assert texts(picture)[-2:] == ["affine(mul=2.0, add=-1.0)", "[1, 1] f32"]
    # Three edges between neighbouring rows: a curve and a head each.
    assert len(list(picture.iter(f"{SVG}path"))) == 6


def test_kinds_have_a_look_each() -> None:
    x = LazyTensor.from_tensor(Var([[1.0, 2.0]]))
    held = x.exp()
    held.eval()
    y = (held.t() + LazyTensor.new([[1.0], [2.0]])).sqr()
    picture = drawn(y)
    assert texts(picture)[:6] == ["input", "variable", "to compute", "view", "evaluated", "output"]
    looks = {}
    for group in picture.iter(f"{SVG}g"):
        title, rectangle = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        if title is not None and rectangle is not None:
            looks[(title.text or "").split(" = ")[1].split("\n")[0].split("(")[0]] = (
                rectangle.get("fill"),
                rectangle.get("rx"),
                rectangle.get("stroke-dasharray"),
            )
    assert looks.keys() == {"input", "exp", "transpose", "add", "sqr"}
    assert looks["add"] == looks["sqr"]
    assert len(set(looks.values())) == 4
    assert [name for name, (_, _, dashes) in looks.items() if dashes] == ["transpose"]


def borders(picture: ElementTree.Element) -> dict[str, list[str]]:
    """What has a bold border, in the legend and by the first lines of the tooltips, and what a thin one."""
    found: dict[str, list[str]] = {"bold": [], "thin": []}
    for group in picture.iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        rectangles, lines = group.findall(f"{SVG}rect"), group.findall(f"{SVG}text")
        for rectangle, line in zip(rectangles, lines if title is None else rectangles):
            name = line.text if title is None else (title.text or "").split(" = ")[1].split("\n")[0]
            found["bold" if float(rectangle.get("stroke-width", "")) > 2 else "thin"].append(name or "")
    return found


def test_outputs_have_a_bold_border() -> None:
    x = LazyTensor.new([1.0, 2.0])
    y = x.exp()
    assert borders(drawn([y.sqr(), y.sin()])) == {
        "bold": ["output", "sqr", "sin"],
        "thin": ["input", "to compute", "input", "exp"],
    }
    assert borders(drawn([y.sqr(), y]))["bold"] == ["output", "sqr"], "what is used in the picture is on the way"
    with scope("net"):
        z = x.exp().sqr()
    assert set(borders(drawn(z, fold=1))["bold"]) == {"output", "net — 3 nodes"}


def test_ends_are_half_circles_and_each_text_says_that_it_is_centred() -> None:
    w = LazyTensor.from_tensor(Var([1.0]))
    picture = drawn(w + LazyTensor.new([2.0]))
    round_ones = [r for r in picture.iter(f"{SVG}rect") if float(r.get("rx", "")) >= 10]
    assert [(r.get("rx"), r.get("height")) for r in round_ones] == [("10", "20")] * 2 + [("20", "40")] * 2
    assert {text.get("text-anchor") for text in picture.iter(f"{SVG}text")} == {"middle"}
    assert picture.get("text-anchor") is None


def test_folded_modules_and_what_is_left_out() -> None:
    x = LazyTensor.new([1.0, 2.0])
    for i in range(4):
        with scope(f"net.layers.{i}"):
            x = x.exp().sqr()
    picture = drawn(x.neg(), limit=8)
    assert {"layers.3", "2 nodes · [2] f32", "module"} <= set(texts(picture))
    assert "2 exp" not in tooltips(picture)[1]
    assert tooltips(picture)[1].splitlines()[3:] == [
        "1 exp, 1 sqr",
        f"from %{ComputationGraph(x).nodes()[2].id}",
        "net.layers.1",
    ]
    picture = drawn(chain(200), limit=50)
    assert {"… 161 more nodes", "of 201 in all", "left out"} <= set(texts(picture))
    assert "201 nodes in all, 1 evaluated: 200 exp, 1 input" in tooltips(picture)


def test_text_is_escaped() -> None:
    with scope('a<b>&"c"\x00\ud800'):
        y = LazyTensor.new([1.0]).exp()
    picture = drawn(y)
    assert tooltips(picture)[1].endswith('in a<b>&"c"\ufffd\ufffd')
    drawn([y, y.sqr()], fold=1)
    ComputationGraph(y).to_svg().encode("utf-8")


def test_nothing_runs_and_nothing_is_fetched() -> None:
    picture = ComputationGraph(chain(3)).to_svg()
    for word in ("<script", "<style", "href", "url(", "<image", "foreignObject", " on"):
        assert word not in picture
    assert re.findall('https?://[^" ]*', picture) == ["http://www.w3.org/2000/svg"]


def test_text_stands_on_filled_shapes() -> None:
    """So that it can be read on a dark page: no text without a shape of its own behind it, painted before."""
    for group in drawn(chain(3)).iter(f"{SVG}g"):
        painted: list[ElementTree.Element] = []
        for child in group:
            if child.tag == f"{SVG}rect":
                assert child.get("fill", "").startswith("#")
                painted.append(child)
            if child.tag == f"{SVG}text":
                left, top, wide, tall = (float(painted[-1].get(key, "")) for key in ("x", "y", "width", "height"))
                assert left < float(child.get("x", "")) < left + wide
                assert top < float(child.get("y", "")) < top + tall


def test_the_same_graph_gives_the_same_drawing() -> None:
    def plain(picture: str) -> str:
        return re.sub("%[0-9]+", "%", picture)

    first, second = ComputationGraph(chain(30)), ComputationGraph(chain(30))
    assert plain(first.to_svg()) == plain(second.to_svg())
    assert first.to_svg() == first._repr_svg_()


def test_an_empty_graph_and_a_single_node() -> None:
    assert texts(ElementTree.fromstring(svg([]))) == ["an empty graph"]
    assert texts(drawn(Tensor([1.0]))) == ["input", "output", "input", "[1] f32"]


def test_operations_with_several_results() -> None:
    values, indices = LazyTensor.new([[3.0, 1.0], [2.0, 4.0]]).sort_last_dim(True)
    picture = drawn([values, indices])
    assert "[2, 2] f32; [2, 2] u32" in texts(picture)
    assert sum("\n[2, 2] f32; [2, 2] u32\nlazy" in tip for tip in tooltips(picture)) == 1


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    count = draw(st.integers(1, 25))
    sizes = draw(st.lists(st.tuples(st.floats(20, 300), st.just(40.0)), min_size=count, max_size=count))
    pairs = st.integers(1, max(1, count - 1)).flatmap(lambda b: st.tuples(st.integers(0, b - 1), st.just(b)))
    return sizes, draw(st.lists(pairs, max_size=50)) if count > 1 else []


def check(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], placed: Placed) -> None:
    for i, (x, y) in enumerate(placed.centres):
        w, h = sizes[i]
        assert min(x - w / 2, y - h / 2) >= -1e-6
        assert x + w / 2 <= placed.width + 1e-6
        assert y + h / 2 <= placed.height + 1e-6
        for j, (other_x, other_y) in enumerate(placed.centres[:i]):
            apart = abs(x - other_x) >= (w + sizes[j][0]) / 2 - 1e-6 or abs(y - other_y) >= h - 1e-6
            assert apart, f"boxes {j} and {i} overlap"
    for a, b in edges:
        assert placed.centres[a][1] + 40 < placed.centres[b][1]
    for wire in placed.wires:
        assert wire.start[1] < wire.end[1] <= wire.passes_to


@settings(deadline=None, max_examples=150)
@given(boxes())
def test_boxes_do_not_overlap_and_edges_lead_down(
    graph: tuple[list[tuple[float, float]], list[tuple[int, int]]],
) -> None:
    sizes, edges = graph
    placed = arrange(sizes, edges)
    check(sizes, edges, placed)
    # Every edge can be followed along its wires: each box is reached from exactly its sources.
    arrivals = sum(wire.arrives for wire in placed.wires)
    assert arrivals == len(set(edges))


def test_a_chain_is_straight_and_a_pair_does_not_cross() -> None:
    placed = arrange([(100.0, 40.0), (30.0, 40.0), (80.0, 40.0)], [(0, 1), (1, 2)])
    assert len({round(x, 3) for x, _ in placed.centres}) == 1
    # 0 -> 3 and 1 -> 2: whichever is left above is left below.
    placed = arrange([(50.0, 40.0)] * 4, [(0, 3), (1, 2)])
    x = [at for at, _ in placed.centres]
    assert (x[0] < x[1]) == (x[3] < x[2])


def test_a_leaf_stands_right_above_what_uses_it() -> None:
    placed = arrange([(50.0, 40.0)] * 5, [(0, 1), (1, 2), (2, 4), (3, 4)])
    y = [at for _, at in placed.centres]
    assert y[3] == y[2]


@pytest.mark.parametrize("count", [1, 60])
def test_a_long_edge_goes_around(count: int) -> None:
    """From the first box to the last, past a chain of ``count``: its wire keeps clear of every box between."""
    sizes = [(100.0, 40.0)] * (count + 2)
    edges = [*((i, i + 1) for i in range(count + 1)), (0, count + 1)]
    placed = arrange(sizes, edges)
    passing = [wire for wire in placed.wires if not wire.arrives]
    assert len(passing) == count
    rows = {round(y - 20, 3): x for x, y in placed.centres}
    for wire in passing:
        assert abs(wire.end[0] - rows[round(wire.end[1], 3)]) > 50


def test_many_nodes_at_once() -> None:
    nodes = topological_order([chain(399)._node])
    picture = ElementTree.fromstring(svg(nodes, None))
    assert len(tooltips(picture)) == 400
