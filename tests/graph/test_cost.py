"""What operations cost: each record's estimate is sensible, known formulas hold exactly, and costs add up."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Var
from metal_candle.graph import cost, operations
from metal_candle.graph.cost import Cost, cost_of, cost_of_all, element_work, seconds, uses_blas
from metal_candle.graph.node import GraphNode, placeholder, record, topological_order
from metal_candle.graph.operation import REGISTRY, Meta, Metas, Operation
from metal_candle.graph.operations.structure import Vjp
from metal_candle.graph.work import elements, size_in_bytes
from metal_candle.shape import Shape

import numpy as np
import pytest
from costs import flops, meta, result, traffic
from hypothesis import given, settings
from hypothesis import strategies as st

OWN = {key: kind for key, kind in REGISTRY.items() if kind.__module__.startswith(operations.__name__)}


def ids(*shape: int) -> Meta:
    return meta(*shape, dtype=DType.U32)


class Doubled:
    def forward(self, x: Any) -> Any:
        return x + x


class Network:
    name = "network"

    def infer(self, *inputs: Meta) -> Meta:
        return inputs[0]

    def flops(self, inputs: Any, output: Metas) -> int:
        return 70


KEY = ids(2)
CODES = (ids(6, 8), meta(6, 2), meta(6, 2))  # a weight (6, 64) in 4 bits
# Records whose operands no sample describes.
BY_HAND: dict[str, tuple[Operation, tuple[Metas, ...]]] = {
    "input": (Operation.Input, ()),
    "pick": (Operation.Pick(1), ((meta(5, 7), ids(5, 7)),)),
    "vjp": (Vjp(Operation.Exp, (True,), (True,)), (meta(5, 7), meta(5, 7), meta(5, 7))),
    "to_device": (Operation.ToDevice(Device.Cpu), (meta(5, 7),)),
    "custom": (Operation.Custom(Doubled()), (meta(5, 7),)),
    "custom_without_backward": (Operation.CustomWithoutBackward(Doubled()), (meta(5, 7),)),
    "mlx_function": (Operation.MlxFunction(Network()), (meta(5, 7), meta(3))),
    "mlx_loss": (Operation.MlxLoss(Network(), 1), (meta(5, 7), meta(3))),
    "index_select": (Operation.IndexSelect(0), (meta(50, 7), ids(3))),
    "embedding": (Operation.Embedding, (meta(50, 7), ids(2, 3))),
    "gather": (Operation.Gather(1), (meta(5, 70), ids(5, 2))),
    "where_cond": (Operation.WhereCond, (ids(5, 7), meta(5, 7), meta(5, 7))),
    "sort_last_dim": (Operation.SortLastDim(True), (meta(5, 7),)),
    "uniform": (Operation.Uniform(0.0, 1.0, Shape((5, 7)), DType.F32), (KEY,)),
    "normal": (Operation.Normal(0.0, 1.0, Shape((5, 7)), DType.F32), (KEY,)),
    "dropout": (Operation.Dropout(0.5), (meta(5, 7), KEY)),
    "head_cross_entropy": (Operation.HeadCrossEntropy(), (meta(5, 7), meta(11, 7), ids(5))),
    "cross_entropy": (Operation.CrossEntropy(), (meta(5, 7), ids(5))),
    "quantized_linear": (Operation.QuantizedLinear(4), (meta(3, 64), *CODES)),
    "quantized_embedding": (Operation.QuantizedEmbedding(4), (ids(3), *CODES)),
    "quantized_head_cross_entropy": (Operation.QuantizedHeadCrossEntropy(4), (meta(3, 64), ids(3), *CODES)),
    "global_norm": (Operation.GlobalNorm, (meta(5, 7), meta(3))),
    "add_rms_norm": (Operation.AddRMSNorm(1e-5), (meta(5, 7), meta(5, 7), meta(7))),
    "add_layer_norm": (Operation.AddLayerNorm(1e-5), (meta(5, 7), meta(5, 7), meta(7), meta(7))),
    "batch_norm": (Operation.BatchNorm(1e-5, True), (meta(5, 7), meta(7), meta(7))),
    "expert_linear": (Operation.ExpertLinear(32), (meta(5, 7), ids(5), meta(3, 2, 7))),
    "lstm": (Operation.LSTM, (meta(2, 3, 8), meta(2, 2), meta(2, 2), meta(8, 2))),
    "adam_update": (
        Operation.AdamUpdate((True, True), 1.0, True, 0.9, 0.999, 1e-8, 0.01, True),
        (meta(5, 7), meta(3), meta(5, 7), meta(3), meta(38), meta(38), meta(), meta(), meta()),
    ),
    "sgd_update": (
        Operation.SGDUpdate((True, True), 1.0, False, 0.9, True, 0.0, 0.0),
        (meta(5, 7), meta(3), meta(5, 7), meta(3), meta(38), meta(), meta()),
    ),
    "muon_update": (
        Operation.MuonUpdate((True, False), 1.0, False, 0.95, 0.01, True, 5),
        (meta(5, 7), meta(3, 2), meta(5, 7), meta(41), meta(), meta()),
    ),
    "clip_factor": (Operation.ClipFactor(1.0), (meta(),)),
    "scale_gradients": (Operation.ScaleGradients, (meta(5, 7), meta(3), meta())),
    "clamp_gradients": (Operation.ClampGradients(1.0), (meta(5, 7), meta(3))),
}
CASES = [
    pytest.param(operation, inputs, id=f"{key}-{n}")
    for key, kind in OWN.items()
    for n, (operation, inputs) in enumerate(
        [BY_HAND[key]]
        if key in BY_HAND
        else [
            (
                kind(*sample.params),
                tuple(
                    ids(*shape) if place in dict(sample.ids) else meta(*shape)
                    for place, shape in enumerate(sample.shapes)
                ),
            )
            for sample in kind.samples
        ]
    )
]


def node_of(operation: Operation, *inputs: Meta) -> GraphNode:
    return record(operation, tuple(placeholder(x, Device.Cpu) for x in inputs))


def test_every_record_is_tried() -> None:
    tried = {case.values[0].key for case in CASES}
    # A checkpoint is several operations in one, and what they move between them counts: see
    # ../nn/test_gradient_checkpointing.py.
    assert tried == set(OWN) - {"checkpoint"}, "a record has samples, or is named in BY_HAND"


# What makes no floating-point operation: it moves elements, or nobody knows.
NO_FLOPS = ("view", "move", "select")


def _makes_none(operation: Operation, inputs: tuple[Metas, ...], output: Metas) -> bool:
    if isinstance(operation, operations.quantized.QuantizedEmbedding):  # it unpacks what it selects
        return False
    if isinstance(operation, operations.resize.UpsampleBilinear2d):
        return inputs[0] == output
    return operation.work in NO_FLOPS or isinstance(operation, (operations.scatter.Scatter, operations.custom.Custom))


@pytest.mark.parametrize(("operation", "inputs"), CASES)
def test_the_numbers_of_every_record_are_sensible(operation: Operation, inputs: tuple[Metas, ...]) -> None:
    output = result(operation, *inputs)
    work, count = operation.steps(inputs, output)
    done, moved = operation.flops(inputs, output), operation.traffic(inputs, output)
    assert {type(number) for number in (count, done, moved)} == {int}
    assert work in cost.NANOSECONDS
    assert type(operation).work in cost.NANOSECONDS
    assert min(count, done, moved) >= 0
    seen, every = elements(output), size_in_bytes(*inputs, output)
    if operation.work == "view" and not isinstance(operation, Vjp):
        assert (count, done, moved) == (0, 0, 0)
        return
    # Each element of the result is written, and what is read is part of the inputs, or as often as it is picked.
    assert size_in_bytes(output) <= moved
    assert moved <= every + (size_in_bytes(output) if operation.work == "select" else 0)
    if _makes_none(operation, inputs, output):
        assert done == 0
    elif seen and all(elements(x) for x in inputs):
        assert done > 0
        assert count > 0 or operation.uses_blas()


@pytest.mark.parametrize(
    ("operation", "inputs"), [case for case in CASES if case.values[0].differentiable and case.values[1]]
)
def test_the_numbers_of_every_gradient_are_sensible(operation: Operation, inputs: tuple[Metas, ...]) -> None:
    output = result(operation, *inputs)
    if not isinstance(output, Meta) or not all(isinstance(x, Meta) for x in inputs):
        output, inputs = (output[0], inputs) if not isinstance(output, Meta) else (output, ())
    needs = tuple(isinstance(x, Meta) and x.dtype.is_float_ for x in inputs)
    if not any(needs):
        return
    vjp = Vjp(operation, needs, (True,))
    given = (output, *inputs, output)
    gradients = vjp.infer(*given)
    assert elements(gradients) == sum(elements(x) for x, need in zip(inputs, needs) if need)
    work, count = vjp.steps(given, gradients)
    done, moved = vjp.flops(given, gradients), vjp.traffic(given, gradients)
    assert {type(number) for number in (count, done, moved)} == {int}
    assert work in cost.NANOSECONDS
    assert min(count, done, moved) >= 0
    assert moved <= size_in_bytes(*given, gradients)
    assert vjp.uses_blas() == operation.uses_blas()
    if work == "view":
        assert (count, done, moved) == (0, 0, 0)
    else:
        assert moved >= size_in_bytes(gradients)


# --- formulas -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), max_size=2),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_a_product_has_a_multiply_add_for_each_triple(
    leading: list[tuple[int, bool, bool]], m: int, k: int, n: int
) -> None:
    left = [1 if one else size for size, one, _ in leading]
    right = [1 if one else size for size, _, one in leading]
    batch = math.prod(max(a, b) for a, b in zip(left, right))
    lhs, rhs = meta(*left, m, k), meta(*right, k, n)
    assert flops(Operation.Matmul, lhs, rhs) == 2 * batch * m * k * n
    assert traffic(Operation.Matmul, lhs, rhs) == 4 * (elements(lhs, rhs) + batch * m * n)


@pytest.mark.parametrize("needs", list(product([False, True], repeat=2))[1:])
def test_a_products_gradient_is_a_product_for_each_factor(needs: tuple[bool, bool]) -> None:
    for operation, rhs in ((Operation.Matmul, meta(7, 3)), (Operation.Linear, meta(3, 7))):
        inputs = (meta(5, 7), rhs)
        assert operation.vjp_flops(inputs, result(operation, *inputs), needs) == sum(needs) * 2 * 5 * 7 * 3


def test_linear() -> None:
    assert flops(Operation.Linear, meta(2, 5, 7), meta(3, 7)) == 2 * 10 * 7 * 3
    assert flops(Operation.QuantizedLinear(4), meta(3, 64), *CODES) == 2 * 3 * 64 * 6
    # Four bits for a weight, and a scale and a bias for each 32 of them.
    assert traffic(Operation.QuantizedLinear(4), meta(3, 64), *CODES) == 4 * 3 * 64 + 6 * (32 + 16) + 4 * 3 * 6


@pytest.mark.parametrize(("t", "s"), [(5, 5), (3, 7), (1, 4), (7, 3)])
def test_attention_counts_the_scores_that_a_causal_mask_leaves(t: int, s: int) -> None:
    q, kv = meta(2, 6, t, 8), meta(2, 3, s, 8)
    seen = int(np.tril(np.ones((t, s)), s - t).sum())
    for operation, mask, scores in (
        (Operation.Sdpa(0.3, False), (), t * s),
        (Operation.Sdpa(0.3, True), (), seen),
        (Operation.Sdpa(0.3, False), (meta(t, s),), t * s),
    ):
        inputs = (q, kv, kv, *mask)
        heads = 2 * 6
        # Two products over 8 channels; maximum, difference, exponential, sum and quotient of the softmax.
        assert flops(operation, *inputs) == heads * scores * (2 * 2 * 8 + 5)
        assert operation.steps(inputs, q) == ("softmax", heads * scores)
        needs = (True, True, True, *[False for _ in mask])
        assert operation.vjp_flops(inputs, q, needs) == heads * scores * (4 * 2 * 8 + 2)
        only_v = (False, False, True, *[False for _ in mask])
        assert operation.vjp_flops(inputs, q, only_v) == heads * scores * 2 * 8


def test_the_head_and_its_loss() -> None:
    operation, inputs = BY_HAND["head_cross_entropy"]
    assert flops(operation, *inputs) == 2 * 5 * 7 * 11 + 4 * 5 * 11 + 2 * 5 * 7
    output = result(operation, *inputs)
    assert operation.vjp_flops(inputs, output, (True, False, False)) == 2 * 5 * 7 * 11
    assert operation.vjp_flops(inputs, output, (False, True, False)) == 2 * 2 * 5 * 7 * 11 + 4 * 5 * 11
    # The logits are never written.
    assert traffic(operation, *inputs) == 4 * (5 * 7 + 11 * 7 + 5 + 5)


def test_a_convolution_is_counted_by_its_windows() -> None:
    b, groups, c_in, c_out, stride, padding = 2, 2, 4, 6, 2, 1
    x, kernel = meta(b, c_in, 7, 8), meta(c_out, c_in // groups, 3, 2)
    operation = Operation.Conv2d(padding, stride, 1, groups)
    places = len(range(0, 7 + 2 * padding - 3 + 1, stride)) * len(range(0, 8 + 2 * padding - 2 + 1, stride))
    assert flops(operation, x, kernel) == 2 * b * c_out * (c_in // groups) * places * 3 * 2
    assert operation.steps((x, kernel), result(operation, x, kernel)) == ("move", b * c_in * 3 * 2 * places)
    one = Operation.Conv1d(0, 1, 1, 1)
    assert flops(one, meta(1, 3, 10), meta(5, 3, 4)) == 2 * 5 * 3 * 7 * 4


def test_a_transposed_convolution_costs_what_its_adjoint_does() -> None:
    x, kernel = meta(2, 3, 7, 8), meta(4, 3, 3, 2)
    forward = Operation.Conv2d(0, 2, 1, 1)
    small = result(forward, x, kernel)
    assert isinstance(small, Meta)
    back = Operation.ConvTranspose2d(0, 2, 1, 1, 0)
    assert flops(back, small, kernel) == flops(forward, x, kernel)


def test_softmax_and_norms() -> None:
    x, n = meta(5, 12), 60
    assert flops(Operation.Softmax(1), x) == flops(Operation.LogSoftmax(1), x) == 5 * n
    assert flops(Operation.RMSNorm(1e-5), x) == 3 * n
    assert flops(Operation.WeightedRMSNorm(1e-5), x, meta(12)) == 4 * n
    assert [flops(Operation.LayerNorm(1e-5), x, *[meta(12)] * more) for more in range(3)] == [5 * n, 6 * n, 7 * n]
    assert traffic(Operation.LayerNorm(1e-5), x, meta(12), meta(12)) == 4 * (2 * n + 24)
    assert flops(Operation.LogSumExp((1,)), x) == flops(Operation.Variance(1, False), x) == 4 * n


def test_elements_by_element() -> None:
    x, row = meta(5, 12), meta(12)
    assert flops(Operation.Add, x, row) == 60
    assert traffic(Operation.Add, x, row) == 4 * (60 + 12 + 60)
    assert traffic(Operation.Lt, x, row) == 4 * (60 + 12) + 60
    assert flops(Operation.Affine(2.0, 1.0), x) == 2 * flops(Operation.Affine(2.0, 0.0), x) == 120
    assert flops(Operation.Affine(1.0, 0.0), x) == 0
    assert flops(Operation.Swiglu, x, x) == flops(Operation.Silu, x) + flops(Operation.Mul, x, x)


def test_reductions_go_through_their_inputs() -> None:
    x = meta(5, 12, dtype=DType.BF16)
    for operation in (Operation.Sum((1,), False), Operation.Max((0,), True), Operation.Argmax(1, False)):
        assert flops(operation, x) == 60
        assert operation.steps((x,), result(operation, x)) == ("reduction", 60)
    assert traffic(Operation.Sum((1,), False), x) == 2 * (60 + 5)
    assert traffic(Operation.Argmax(1, False), x) == 2 * 60 + 4 * 5
    assert flops(Operation.GlobalNorm, *BY_HAND["global_norm"][1]) == 2 * 38


def test_pools_and_sizes() -> None:
    image = meta(2, 3, 8, 6)
    assert flops(Operation.AvgPool2d((2, 3), (2, 3)), image) == elements(image)
    assert flops(Operation.MaxPool2d((3, 3), (1, 1)), image) == 2 * 3 * 6 * 4 * 9
    assert flops(Operation.UpsampleNearest2d((16, 12)), image) == 0
    assert traffic(Operation.UpsampleNearest2d((16, 12)), image) == 4 * 5 * elements(image)
    # Of an image that shrinks not every element is read.
    assert traffic(Operation.UpsampleNearest2d((4, 3)), image) == 2 * elements(image)
    assert flops(Operation.UpsampleBilinear2d((16, 12), False, None), image) == 3 * 6 * (16 * 6 + 16 * 12)


def test_ids_read_what_they_pick() -> None:
    table = meta(1000, 64, dtype=DType.F16)
    assert traffic(Operation.Embedding, table, ids(2, 3)) == 2 * 2 * 6 * 64 + 4 * 6
    assert traffic(Operation.IndexSelect(0), table, ids(5)) == 2 * 2 * 5 * 64 + 4 * 5
    assert traffic(Operation.Gather(1), table, ids(1000, 1)) == 2 * 2 * 1000 + 4 * 1000
    assert flops(Operation.Embedding, table, ids(2, 3)) == 0
    # The gradient adds them to a table of zeros.
    output = result(Operation.Embedding, table, ids(2, 3))
    assert Operation.Embedding.vjp_flops((table, ids(2, 3)), output, (True, False)) == 6 * 64
    # A row of 64 weights in 4 bits, with 2 scales and 2 biases.
    assert traffic(Operation.QuantizedEmbedding(4), ids(3), *CODES) == 4 * 3 + 3 * (32 + 16) + 4 * 3 * 64
    assert flops(Operation.QuantizedEmbedding(32), ids(3), meta(6, 64)) == 0


def test_what_is_scattered_is_counted_once() -> None:
    x, places, source = meta(50, 7), ids(2, 7), meta(2, 7)
    assert flops(Operation.ScatterAdd(0), x, places, source) == 14
    assert flops(Operation.Scatter(0), x, places, source) == 0
    assert flops(Operation.IndexAdd(0), x, ids(2), source) == 14
    assert traffic(Operation.ScatterAdd(0), x, places, source) == 4 * (350 + 14 + 14 + 350)


@pytest.mark.parametrize(("n", "levels"), [(0, 0), (1, 0), (2, 1), (8, 3), (9, 4)])
def test_a_sort_compares_n_log_n(n: int, levels: int) -> None:
    for operation in (Operation.ArgSortLastDim(True), Operation.SortLastDim(False)):
        assert flops(operation, meta(3, n)) == 3 * n * levels


def test_views_move_nothing_and_their_gradients_only_what_they_must() -> None:
    x = meta(6, 4)
    output = meta(4, 6)
    assert traffic(Operation.Transpose(0, 1), x) == 0
    assert Operation.Transpose(0, 1).vjp_traffic((x,), output, (True,)) == 0
    part = Operation.Narrow(0, 1, 2)
    assert part.vjp_traffic((x,), meta(2, 4), (True,)) == 4 * (8 + 24)
    assert part.vjp_flops((x,), meta(2, 4), (True,)) == 0
    repeated = Operation.BroadcastAs(Shape((5, 6, 4)))
    assert repeated.vjp_flops((x,), meta(5, 6, 4), (True,)) == 120
    assert traffic(Operation.Contiguous, x) == 2 * 96


def test_the_optimizer() -> None:
    operation, inputs = BY_HAND["adam_update"]
    assert flops(operation, *inputs) == 15 * 38
    operation, inputs = BY_HAND["sgd_update"]
    assert flops(operation, *inputs) == (2 + 2 + 2) * 38
    # Of the 5 x 7 matrix alone: five steps of three products, with 5 the smaller side.
    operation, inputs = BY_HAND["muon_update"]
    assert flops(operation, *inputs) == 5 * (2 * 2 * 5 * 35 + 2 * 5**3) + 12 * 35
    assert flops(*BY_HAND["scale_gradients"][:1], *BY_HAND["scale_gradients"][1]) == 38


# --- costs of graphs ------------------------------------------------------------------------------


def test_a_cost_in_words() -> None:
    assert str(Cost(12_600_000, 3_100_000)) == "12.6 MFLOP, 3.1 MB"
    assert str(Cost()) == "0 FLOP, 0 B"
    assert str(Cost(999, 1000)) == "999 FLOP, 1.0 kB"
    assert str(Cost(999_960, 2 * 10**12)) == "1.0 MFLOP, 2.0 TB"
    assert str(Cost(3 * 10**19)) == "30000.0 PFLOP, 0 B"


def test_costs_add_up() -> None:
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
    x = LazyTensor.new(np.ones((5, 7), np.float32))
    y = x.matmul(x.t()).exp().sum_all()
    nodes = topological_order([y._node])
    product, exponential, total = Cost(2 * 5 * 7 * 5, 4 * 95), Cost(25, 200), Cost(25, 104)
    assert [cost_of(node) for node in nodes] == [Cost(), Cost(), product, exponential, total]
    assert cost_of_all(nodes) == product + exponential + total
    assert cost_of_all([]) == Cost()


def test_a_node_that_let_go_its_inputs_costs_nothing() -> None:
    y = LazyTensor.new(np.ones((5, 7), np.float32)).exp()
    assert cost_of(y._node) == Cost(35, 280)
    y.eval()
    assert cost_of(y._node) == Cost()
    assert element_work(y._node) == seconds([y._node]) == 0
    assert not uses_blas(y._node)


def test_a_backward_pass_has_a_cost() -> None:
    w = Var.new(np.ones((7, 3), np.float32))
    x = LazyTensor.new(np.ones((5, 7), np.float32))
    loss = x.matmul(LazyTensor.from_tensor(w)).sum_all()
    forward = cost_of_all(topological_order([loss._node]))
    gradient = loss.backward().get(w)
    assert forward == Cost(2 * 5 * 7 * 3 + 15, 4 * (35 + 21 + 15) + 4 * 16)
    assert gradient is not None
    vjp = node_of(Vjp(Operation.Matmul, (False, True), (True,)), meta(5, 3), meta(5, 7), meta(7, 3), meta(5, 3))
    assert cost_of(vjp).flops == 2 * 5 * 7 * 3


def test_which_nodes_blas_spreads() -> None:
    matrices = (meta(64, 64), meta(64, 64))
    assert uses_blas(node_of(Operation.Matmul, *matrices))
    assert uses_blas(node_of(Vjp(Operation.Matmul, (True, True), (True,)), matrices[0], *matrices, matrices[0]))
    assert not uses_blas(node_of(Operation.Mul, *matrices))
    assert not uses_blas(node_of(Operation.Softmax(1), matrices[0]))
    assert not uses_blas(placeholder(matrices[0], Device.Cpu))


def test_element_work_follows_kind_size_and_dtype() -> None:
    def work(operation: Operation, *shape: int, dtype: DType = DType.F32) -> float:
        return element_work(node_of(operation, meta(*shape, dtype=dtype)))

    n = 1 << 20
    assert work(Operation.Exp, n) == cost.NANOSECONDS["exponential"] * n
    assert work(Operation.Exp, 2 * n) == 2 * work(Operation.Exp, n)
    assert 0 < work(Operation.Neg, n) < work(Operation.Softmax(0), n) < work(Operation.Sin, n)
    assert work(Operation.Exp, n, dtype=DType.F16) == work(Operation.Exp, n) + cost.F16_MORE * n
    assert work(Operation.Exp, n, dtype=DType.BF16) == work(Operation.Exp, n)
    assert work(Operation.Exp, n, dtype=DType.F64) == cost.F64_FACTOR * work(Operation.Exp, n)
    assert work(Operation.Copy, n, dtype=DType.F16) == work(Operation.Copy, n)
    assert work(Operation.Reshape(Shape((n,))), n) == 0


def test_seconds_of_products_and_of_elements() -> None:
    square = (meta(1000, 1000), meta(1000, 1000))
    assert seconds([node_of(Operation.Matmul, *square)]) == pytest.approx(2e9 / cost.PRODUCT_FLOPS_PER_SECOND)
    # A vector's product is as fast as the matrix is read.
    vector = node_of(Operation.Matmul, meta(1, 1000), square[1])
    assert seconds([vector]) == pytest.approx(4 * (1000 + 10**6 + 1000) / cost.BYTES_PER_SECOND)
    exp = node_of(Operation.Exp, square[0])
    assert seconds([exp]) == pytest.approx(element_work(exp) * 1e-9)
    assert seconds([exp, vector]) == pytest.approx(seconds([exp]) + seconds([vector]))
    # Attention has its softmax beside its products.
    heads = meta(1, 8, 256, 64)
    attention = node_of(Operation.Sdpa(0.1, False), heads, heads, heads)
    assert element_work(attention) == cost.NANOSECONDS["softmax"] * 8 * 256 * 256
    assert seconds([attention]) > element_work(attention) * 1e-9


def test_an_unknown_operation_has_its_traffic() -> None:
    x = mc.LazyTensor.new(np.ones((5, 7), np.float32))
    assert cost_of(x.apply_op1(Doubled())._node) == Cost(0, 4 * 70)
