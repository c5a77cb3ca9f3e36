"""``ComputationGraph``, nodes, what they hold, and evaluation."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import metal_candle as mc
from metal_candle import Device, LazyTensor, Tensor, Var
from metal_candle.graph import ComputationGraph, NodeData, NodeId, Operation
from metal_candle.graph.evaluate import evaluate
from metal_candle.graph.node import GraphNode, leaf, record
from metal_candle.graph.operations.structure import ToDevice

import mlx.core as mx
import numpy as np
import pytest


def lazy(*values: float) -> LazyTensor:
    return LazyTensor.new([float(value) for value in values])


def test_a_view_of_a_tensor() -> None:
    x = lazy(1, 2)
    y = x.mul_scalar(2.0) + x
    graph = ComputationGraph(y)
    assert len(graph) == y.graph_size() == 3
    assert not graph.is_empty()
    assert [node.operation.name() for node in graph.nodes()] == ["input", "mul_scalar", "add"]
    assert graph.topological_order(y.node_id())[-1] is graph.get_node(y.node_id())
    assert graph.outputs() == [graph.get_node(y.node_id())]
    assert repr(graph) == "ComputationGraph(3 nodes, Device.Cpu)"


def test_a_view_of_several_tensors_counts_shared_nodes_once() -> None:
    x = lazy(1, 2)
    shared = x.exp()
    graph = ComputationGraph([shared + x, shared * x])
    assert len(graph) == 4
    together = ComputationGraph(shared + x, Var([1.0]), Tensor([1.0]))
    assert len(together) == 5
    assert len(together.outputs()) == 3
    order = graph.topological_order()
    for node in order:
        assert all(order.index(source) < order.index(node) for source in node.inputs)


def test_a_graph_by_hand() -> None:
    graph = ComputationGraph(Device.Cpu)
    assert graph.is_empty()
    assert len(graph) == 0
    assert graph.explain() == "an empty graph"
    a = graph.add_input(Tensor([[1.0, 2.0], [3.0, 4.0]]))
    b = graph.add_input(Tensor([[1.0], [1.0]]))
    product = graph.add_node(Operation.Matmul, [a, b])
    scaled = graph.add_node(Operation.MulScalar(value=2.0), [NodeId(product.id)])
    assert (tuple(scaled.output_shape), scaled.output_dtype) == ((2, 1), mc.DType.F32)
    assert scaled.inputs == (product,)
    assert graph.topological_order(product) == [a, b, product]
    assert graph.device == Device.Cpu
    evaluate([scaled])
    assert scaled.data.as_tensor().to_vec2() == [[6.0], [14.0]]


def test_a_graph_by_hand_refuses() -> None:
    graph = ComputationGraph(Device.Cpu)
    a = graph.add_input(Tensor([1.0, 2.0, 3.0]))
    stranger = lazy(1, 2, 3)
    with pytest.raises(mc.Error, match=f"node {stranger.node_id():d} not found; this graph has 1 nodes"):
        graph.add_node(Operation.Add, [a, stranger.node_id()])
    with pytest.raises(mc.Error, match=r"Add requires 2 inputs, got 1"):
        graph.add_node(Operation.Add, [a])
    b = graph.add_input(Tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"add: got shapes \(3,\) and \(2,\); takes shapes that broadcast"):
        graph.add_node(Operation.Add, [a, b])
    assert len(graph) == 2
    with pytest.raises(mc.Error, match=r"^graph: got 'x'; takes a device, tensors or a list of tensors$"):
        ComputationGraph("x")
    for more in ((lazy(1), 3), (Device.Cpu, lazy(1)), ([lazy(1)], lazy(2)), (None, lazy(1))):
        with pytest.raises(mc.ArgumentTypeError, match=r"^graph: got .*; takes tensors$"):
            ComputationGraph(*more)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda graph, node: graph.add_input("x"), "add_input: got 'x'; takes a tensor"),
        (lambda graph, node: graph.add_node("add", [node, node]), "add_node: got 'add'; takes an Operation"),
        (lambda graph, node: graph.add_node(Operation.Add, node), "add_node: got inputs .*; takes a list of nodes"),
        (lambda graph, node: graph.add_node(Operation.Add, [node, "x"]), "graph: got handle 'x'; takes a node or its"),
        (lambda graph, node: graph.get_node("x"), "graph: got handle 'x'; takes a node or its id"),
        (lambda graph, node: graph.get_node(None), "graph: got handle None; takes a node or its id"),
        (lambda graph, node: graph.topological_order(1.5), "graph: got handle 1.5; takes a node or its id"),
        (lambda graph, node: graph.merge_from("x", node), "merge_from: got 'x'; takes a ComputationGraph"),
    ],
)
def test_what_is_no_handle_is_named(call: Any, text: str) -> None:
    graph = ComputationGraph(Device.Cpu)
    node = graph.add_input(Tensor([1.0]))
    with pytest.raises(mc.ArgumentTypeError, match=f"^{text}"):
        call(graph, node)
    assert len(graph) == 1
    assert "x" not in graph


def test_merging_adds_an_output_and_copies_nothing() -> None:
    y = lazy(1, 2).exp()
    other, graph = ComputationGraph(y), ComputationGraph(lazy(3))
    handle = graph.merge_from(other, y.node_id())
    assert handle is other.get_node(y.node_id())
    assert handle in graph
    assert len(graph) == 3
    with pytest.raises(mc.Error, match="not found"):
        ComputationGraph(Device.Cpu).merge_from(other, 10**9)


def test_node_data() -> None:
    x = lazy(1, 2)
    y = x.exp()
    graph = ComputationGraph(y)
    start, end = graph.nodes()
    assert start.data.is_available()
    assert start.data.variant == "Concrete"
    assert start.data.as_tensor().to_vec1() == [1.0, 2.0]
    assert end.data is NodeData.Lazy
    with pytest.raises(mc.Error, match="not yet available"):
        end.data.as_tensor()
    with pytest.raises(mc.Error, match="not yet available"):
        NodeData.Lazy.take_tensor()
    y.eval()
    assert end.data.variant == "Available"
    assert isinstance(end.data.take_tensor(), Tensor)
    assert repr(y.node_id()) == f"NodeId({end.id})"
    assert len({y.node_id(), NodeId(end.id)}) == 1


def test_explain_and_drawings() -> None:
    w = Var([[1.0], [2.0]])
    y = LazyTensor.new([[1.0, 2.0]]).matmul(LazyTensor.from_tensor(w)).affine(2.0, -1.0)
    graph = ComputationGraph(y)
    a, b, product, result = (node.id for node in graph.nodes())
    lines = [" ".join(line.split()) for line in graph.explain().splitlines()]
    assert lines == [
        f"%{a} = input [2, 1] f32, variable, evaluated",
        f"%{b} = input [1, 2] f32, evaluated",
        f"%{product} = matmul <- %{b}, %{a} [1, 1] f32, lazy",
        f"%{result} = affine(mul=2.0, add=-1.0) <- %{product} [1, 1] f32, lazy",
    ]
    dot = graph.to_dot()
    assert dot.startswith("digraph ")
    assert dot.count("->") == 3
    assert f"n{product} -> n{result};" in dot
    assert f'n{result} [label="affine(mul=2.0, add=-1.0)\\n[1, 1] f32", penwidth=2.5];' in dot
    variable, given = '#fdebc8", color="#b7791f"', '#e3ebf6", color="#5b7aa8"'
    for leaf_id, meta, colours in ((a, "[2, 1] f32", variable), (b, "[1, 2] f32", given)):
        assert f'n{leaf_id} [label="input\\n{meta}", style="rounded,filled", fillcolor="{colours}];' in dot
    mermaid = graph.to_mermaid()
    assert mermaid.startswith("flowchart TD\n")
    assert mermaid.count("-->") == 3
    assert f'n{product}["matmul<br/>[1, 1] f32"]' in mermaid
    assert f'n{a}(["input<br/>[2, 1] f32"])' in mermaid
    assert [line.split()[:3] for line in mermaid.splitlines()[-6:]] == [
        ["classDef", "variable", "fill:#fdebc8,stroke:#b7791f,color:#1a202c"],
        ["class", f"n{a}", "variable"],
        ["classDef", "input", "fill:#e3ebf6,stroke:#5b7aa8,color:#1a202c"],
        ["class", f"n{b}", "input"],
        ["classDef", "output", "stroke-width:3px"],
        ["class", f"n{result}", "output"],
    ]
    held = LazyTensor.from_tensor(w).exp()
    held.eval()
    picture = ComputationGraph(held + 1.0)
    number = held.node_id()
    assert f'n{number:d} [label="exp\\n[2, 1] f32", style=filled, fillcolor="#d3f2dc"' in picture.to_dot()
    assert f'n{number:d}("exp<br/>[2, 1] f32")' in picture.to_mermaid()
    assert f"class n{number:d} evaluated" in picture.to_mermaid()


def test_the_module_offers_the_names_of_the_layer_above() -> None:
    from metal_candle import graph

    assert graph.LazyTensor is LazyTensor
    assert graph.AsyncExecutor.__name__ == "AsyncExecutor"
    assert {"ComputationGraph", "GraphNode", "AsyncGraphExecutor"} <= set(dir(graph))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = graph.Nothing
    with pytest.raises(AttributeError, match="Operation has no record and no attribute 'Nothing'"):
        _ = Operation.Nothing


def test_operations_are_values_that_infer() -> None:
    assert Operation.MulScalar(value=2.0) == Operation.MulScalar(2.0)
    assert Operation.MulScalar(2.0) != Operation.MulScalar(3.0)
    assert Operation.Softmax(dim=-1).name() == "softmax"
    assert [Operation.Matmul.name(), Operation.LoRA(scale=1.0).name(), Operation.RMSNorm(eps=1e-5).name()] == [
        "matmul",
        "lora",
        "rms_norm",
    ]
    assert tuple(Operation.Matmul.output_shape([(5, 2, 3), (3, 4)])) == (5, 2, 4)
    assert tuple(Operation.LoRA(scale=1.0).output_shape([(7, 6), (6, 2), (2, 9)])) == (7, 9)
    assert tuple(Operation.Add.output_shape([(2, 1), (3,)])) == (2, 3)
    assert Operation.Add.output_dtype([mc.DType.F16, mc.DType.F16]) is mc.DType.F16
    # Whatever the rank of the tensors will be.
    assert Operation.Softmax(dim=3).output_dtype([mc.DType.F16]) is mc.DType.F16
    with pytest.raises(mc.Error, match="Input: it is a value already; its tensor has shape and dtype"):
        Operation.Input.output_shape([])
    with pytest.raises(TypeError, match="dtypes differ, lhs f32, rhs f16"):
        Operation.Add.output_dtype([mc.DType.F32, mc.DType.F16])
    with pytest.raises(ValueError, match="Matmul requires 2 inputs, got 1"):
        Operation.Matmul.output_shape([(2, 3)])


def test_evaluation_keeps_what_is_held_and_lets_the_rest_go() -> None:
    x = lazy(1, 2)
    held = x.exp()
    end = (held.sqr() + 1.0).sum_all()
    middle = weakref.ref(end._node.inputs[0])
    end.eval()
    assert held.is_evaluated()
    assert end.graph_size() == 1
    gc.collect()
    assert middle() is None


def test_a_second_handle_of_a_node_keeps_it_held() -> None:
    x = lazy(1, 2)
    held = x.exp()
    LazyTensor(held._node)
    (held + 1.0).eval()
    assert held.is_evaluated()


def test_nodes_that_a_gradient_needs_keep_their_inputs() -> None:
    w = Var([1.0, 2.0])
    y = (LazyTensor.from_tensor(w) * 2.0).exp()
    y.eval()
    assert y.graph_size() == 3
    assert y.backward()[w].to_vec1() == pytest.approx(2 * np.exp([2.0, 4.0]), rel=1e-6)


def test_all_outputs_in_one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    x = lazy(1, 2)
    shared = x.exp()
    evaluated, lowered = [], []
    plain = Operation.Exp.__class__.lower
    monkeypatch.setattr(Operation.Exp.__class__, "lower", lambda op, x: lowered.append(1) or plain(x))
    real = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: evaluated.append(1) or real(*arrays))
    first, second = mc.eval_all([shared + x, shared * x])
    assert lowered == [1]
    assert evaluated == [1]
    np.testing.assert_allclose(second.numpy(), np.exp([1, 2]) * [1, 2], rtol=1e-6)
    np.testing.assert_allclose(first.numpy(), np.add(np.exp([1, 2]), [1, 2]), rtol=1e-6)
    assert mc.eval_all([]) == []


def test_to_device() -> None:
    class Elsewhere(Device):
        """A second CPU, so that moving can be seen on any machine."""

    other = Elsewhere(Device.Cpu.kind, 0)
    w = Var([1.0, 2.0])
    assert w.to_device(Device.Cpu) is w
    moved = LazyTensor.from_tensor(w).to_device(other)
    assert moved.device == other
    with pytest.raises(mc.Error, match=r"add: operands on .* and .*; move one with to_device"):
        moved + LazyTensor.from_tensor(w)
    loss = (moved * 3.0).to_device(Device.Cpu) + LazyTensor.from_tensor(w)
    grads = loss.sum_all().backward()
    assert loss.eval().to_vec1() == [4.0, 8.0]
    assert grads[w].to_vec1() == [4.0, 4.0]
    assert grads[w].device == Device.Cpu


def test_f64_stays_on_the_cpu() -> None:
    gpu = Device(mc.DeviceType.Cuda, 0)
    x = leaf(mx.array(np.ones(2), mx.float64), Device.Cpu)
    with pytest.raises(TypeError, match="to_device: got dtype f64"):
        record(ToDevice(gpu), (x,), gpu)


def test_a_chain_of_100_000_operations() -> None:
    """Recorded, drawn up, evaluated, differentiated and freed without recursion."""
    w = Var(1.0)
    x = LazyTensor.from_tensor(w)
    for i in range(100_000):
        x = x + 0.5 if i % 2 else x * 1.0
    assert x.graph_size() == 100_001
    grads = x.backward()
    assert x.eval().to_scalar() == pytest.approx(25_001.0)
    assert grads[w].to_scalar() == 1.0
    assert isinstance(x._node, GraphNode)
    last = weakref.ref(x._node)
    del x, grads
    gc.collect()
    assert last() is None
