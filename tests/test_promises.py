"""What metal-candle's progress report and migration guide promise, one test each; ``docs/promises.md`` is the list."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import ComputationGraph, Device, LazyTensor, Tensor, compat, features
from metal_candle.graph import AsyncExecutor, AsyncGraphExecutor, Operation
from metal_candle.training import AdamW, AdamWConfig, LoRAConfig, LoRALayer, cross_entropy_loss

import mlx.core as mx
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def trained(size_in: int, size_out: int, rank: int, seed: int = 0) -> LoRALayer:
    """A layer whose B is not zero."""
    Device.Cpu.set_seed(seed)
    layer = LoRALayer(size_in, size_out, LoRAConfig(rank=rank))
    layer.lora_b().set(Tensor.randn(0.0, 0.1, (rank, size_out)))
    return layer


def normal(*shape: int, seed: int = 1) -> Tensor:
    return Tensor.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def largest(a: Tensor, b: Tensor) -> float:
    """The guide's own recipe for a difference (S37)."""
    return float((a - b).abs().flatten_all().max(0).to_scalar())


def lifted(x: Tensor) -> LazyTensor:
    return LazyTensor.from_tensor(x)


# What the functions are, in NumPy's float64: eager and lazy share their code, and could be wrong alike.


def np_softmax(x: Any, dim: int) -> Any:
    exps = np.exp(x - x.max(dim, keepdims=True))
    return exps / exps.sum(dim, keepdims=True)


def np_rms_norm(x: Any, eps: float = 1e-5) -> Any:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def np_layer_norm(x: Any, eps: float = 1e-5) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def wide(x: Tensor) -> Any:
    return x.numpy().astype(np.float64)


def close(got: Any, want: Any) -> None:
    """Within float32's rounding."""
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)


def np_lora(layer: LoRALayer, x: Any) -> Any:
    return layer.config().scaling() * (x @ wide(layer.lora_a()) @ wide(layer.lora_b()))


def calls_of_v1() -> list[tuple[Any, Any]]:
    """Every function and tensor method of v1: what it gives, and what it is."""
    x, alpha, beta, a, b = normal(2, 8), normal(8, seed=2), normal(8, seed=3), normal(8, 2), normal(2, 8, seed=4)
    layer = trained(8, 8, 2)
    n = wide(x)
    return [
        (compat.softmax(x, 0), np_softmax(n, 0)),
        (compat.softmax(x, -1), np_softmax(n, -1)),
        (compat.rms_norm(x, alpha, 1e-5), np_rms_norm(n) * wide(alpha)),
        (compat.layer_norm(x, alpha, beta, 1e-5), np_layer_norm(n) * wide(alpha) + wide(beta)),
        (x.softmax_stable(), np_softmax(n, -1)),
        (x.layer_norm(1e-5), np_layer_norm(n)),
        (x.rms_norm(1e-5), np_rms_norm(n)),
        (x.softmax_fused(), np_softmax(n, -1)),
        (x.rms_norm_fused(1e-5), np_rms_norm(n)),
        (x.lora_forward_fused(a, b, 0.5), 0.5 * (n @ wide(a) @ wide(b))),
        (x.matmul(x.t()), n @ n.T),
        (x.add(x).mul_scalar(2.0), 4.0 * n),
        (layer.forward(x), np_lora(layer, n)),
    ]


# --- lazy tensors -----------------------------------------------------------------------------


def test_s01_nothing_is_computed_before_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    x = lifted(normal(4, 8))
    calls: list[int] = []
    original = mx.eval

    def count(*arrays: Any) -> None:
        calls.append(len(arrays))
        original(*arrays)

    monkeypatch.setattr(mx, "eval", count)
    y = x.matmul(x.t()).softmax(-1)
    assert (calls, y.is_evaluated(), y.shape) == ([], False, (4, 4))
    y.eval()
    assert (len(calls), y.is_evaluated()) == (1, True)


def test_s02_from_tensor_and_eval_convert() -> None:
    x = normal(3, 5)
    back = lifted(x).eval()
    assert isinstance(back, Tensor)
    assert np.array_equal(back.numpy(), x.numpy())


def test_s03_weights_are_added_to_a_graph() -> None:
    x = lifted(normal(2, 3))
    weight = x.add_tensor_to_graph(normal(3, 4))
    assert isinstance(weight, LazyTensor)
    assert x.matmul(weight).eval().shape == (2, 4)


def test_s04_lora_fused_is_one_operation() -> None:
    a, b = normal(6, 2), normal(2, 5, seed=2)
    y = lifted(normal(4, 6)).lora_fused(lifted(a), lifted(b), 0.5)
    graph = ComputationGraph(y)
    assert [node.operation.name() for node in graph.nodes()].count("lora") == 1
    assert len(graph) == 4  # x, A, B and the one operation
    assert largest(y.eval(), normal(4, 6).matmul(a).matmul(b) * 0.5) < 1e-5


def test_s05_forward_lazy_records() -> None:
    y = trained(16, 12, 4).forward_lazy(lifted(normal(3, 16)))
    assert isinstance(y, LazyTensor)
    assert (y.shape, y.is_evaluated()) == ((3, 12), False)


def test_s06_s11_the_executor_runs_lora_softmax_and_rms_norm_with_and_without_kernels() -> None:
    x, a, b = normal(4, 8), normal(8, 2), normal(2, 8, seed=3)
    wanted = [
        (Operation.LoRA(scale=2.0), [x, a, b], x.numpy() @ a.numpy() @ b.numpy() * 2.0),
        (Operation.Softmax(dim=-1), [x], np.exp(x.numpy()) / np.exp(x.numpy()).sum(-1, keepdims=True)),
        (Operation.RMSNorm(eps=1e-5), [x], x.numpy() / np.sqrt((x.numpy() ** 2).mean(-1, keepdims=True) + 1e-5)),
    ]
    for operation, inputs, want in wanted:
        for off in ((), ("custom-metal",)):
            with features.disabled(*off):
                got = AsyncExecutor(Device.Cpu).execute_operation(operation, inputs)
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((1, 16), (4,)), ((8, 64), (8,)), ((5, 32), (4, 4)), ((3, 64), (2, 4, 8, 16)), ((2, 5, 32), (8,))],
    ids=["1x16 r4", "8x64 r8", "chain of 2", "ranks 2 to 16", "3-D"],
)
def test_s07_s08_eager_and_lazy_lora_agree(shape: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    layers = [trained(shape[-1], shape[-1], rank, seed=i) for i, rank in enumerate(ranks)]
    eager, lazy = normal(*shape), lifted(normal(*shape))
    chained = len(ranks) == 2
    for layer in layers:
        y, z = layer.forward(eager), layer.forward_lazy(lazy)
        close(y, np_lora(layer, wide(eager)))
        # S08's 1e-6, relative to the values: float32 keeps no more of larger ones.
        assert largest(y, z.eval()) <= 1e-6 * max(1.0, float(y.abs().flatten_all().max(0).to_scalar()))
        eager, lazy = (y, z) if chained else (eager, lazy)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 1, 4, 5)])
def test_s09_s10_s12_s13_softmax_and_rms_norm_lazy_against_eager(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    close(x.rms_norm(1e-5), np_rms_norm(wide(x)))
    for dim in range(-1, len(shape)):
        close(x.softmax(dim), np_softmax(wide(x), dim))
        assert largest(x.softmax(dim), lifted(x).softmax(dim).eval()) < 1e-6
    assert largest(x.rms_norm(1e-5), lifted(x).rms_norm(1e-5).eval()) < 1e-6
    assert largest(compat.rms_norm(x, Tensor.ones(shape[-1]), 1e-5), x.rms_norm(1e-5)) < 1e-6


def test_s14_s16_forward_answers_in_kind_with_the_same_result() -> None:
    layer, x = trained(16, 16, 4), normal(2, 16)
    eager, lazy = layer.forward(x), layer.forward(lifted(x))
    assert (type(eager), type(lazy)) == (Tensor, LazyTensor)
    assert largest(eager, lazy.eval()) < 1e-6
    close(eager, np_lora(layer, wide(x)))


def test_s15_every_call_of_v1_gives_what_it_gave() -> None:
    assert compat.Tensor is Tensor
    for result, want in calls_of_v1():
        assert type(result) is Tensor
        close(result, want)


# --- the graph --------------------------------------------------------------------------------


def test_s17_s18_a_graph_in_topological_order_knows_shapes() -> None:
    graph = ComputationGraph(Device.Cpu)
    x, w = graph.add_input(normal(2, 3)), graph.add_input(normal(3, 4))
    product = graph.add_node(Operation.Matmul, [x, w])
    soft = graph.add_node(Operation.Softmax(dim=-1), [product])
    order = graph.topological_order(soft)
    assert order.index(product) < order.index(soft)
    assert {order.index(x), order.index(w)} == {0, 1}
    assert graph.get_node(soft).output_shape == (2, 4)


def test_s19_s49_s50_executors() -> None:
    inputs = [normal(2, 3, seed=seed) for seed in range(4)]
    executor = AsyncExecutor(Device.new_with_fallback(0), max_in_flight=2)
    assert re.fullmatch(r"AsyncExecutor\(device=.+\)", repr(executor))
    close(executor.execute_operation(Operation.MulScalar(value=2.0), inputs[:1]), 2.0 * wide(inputs[0]))

    async def both() -> list[tuple[Tensor, Tensor]]:
        graphs = AsyncGraphExecutor(Device.Cpu)
        begun = [lifted(x).exp().eval_async() for x in inputs]  # all before the first is waited for
        return [(await graphs.execute_tensor(lifted(x).exp()), await told) for x, told in zip(inputs, begun)]

    for x, results in zip(inputs, asyncio.run(both())):
        for result in results:
            assert type(result) is Tensor
            close(result, np.exp(wide(x)))


def test_s24_s30_operations_on_lazy_tensors_mix() -> None:
    a, b = normal(3, 4), normal(3, 4, seed=2)
    y = lifted(a).add(lifted(b)).matmul(lifted(b.t())).mul_scalar(2.0).softmax(-1).rms_norm(1e-5)
    close(y.eval(), np_rms_norm(np_softmax((wide(a) + wide(b)) @ wide(b).T * 2.0, -1)))


def test_s31_graphs_are_rewritten() -> None:
    x, a, b, w = (lifted(normal(*shape)) for shape in ((2, 8), (8, 2), (2, 8), (8, 8)))
    told = (x.matmul(w) + x.matmul(a).matmul(b) * 2.0).explain()
    assert "add_lora(scale=2.0) <- " in told.partition("rewritten:")[2]


def test_s48_an_error_names_the_operation() -> None:
    x = lifted(normal(2, 3))
    for call, name in (
        (lambda: x.matmul(x), "matmul"),
        (lambda: x.add(lifted(normal(3))), "add"),
        (lambda: x.softmax(5), "softmax"),
        (lambda: x.lora_fused(x, x, 1.0), "lora"),
    ):
        with pytest.raises(mc.Error, match=name):
            call()


def test_s51_tensors_of_different_graphs_combine() -> None:
    first, second = lifted(normal(2, 3)).exp(), lifted(normal(2, 3, seed=5)).exp()
    close((first * second).eval(), np.exp(wide(normal(2, 3)) + wide(normal(2, 3, seed=5))))


def test_s46_attention_and_layer_norm_are_operations() -> None:
    q, k, v = (normal(1, 2, 4, 8, seed=seed) for seed in (1, 2, 3))
    mixed = mc.nn.ops.sdpa(lifted(q), lifted(k), lifted(v), None, True, 8**-0.5)
    assert isinstance(mixed, LazyTensor)
    scores = wide(q) @ wide(k).swapaxes(-1, -2) * 8**-0.5
    want = np_softmax(np.where(np.tri(4, dtype=bool), scores, -np.inf), -1) @ wide(v)
    close(mixed.layer_norm(1e-5).eval(), np_layer_norm(want))


# --- features ---------------------------------------------------------------------------------


def test_s32_s33_s34_features_are_on_and_everything_of_v1_works_without() -> None:
    assert features.enabled("graph")
    assert features.enabled("custom-metal")
    layer, x = trained(16, 16, 4), normal(2, 16)
    want = layer.forward(x)
    for off in (("graph",), ("custom-metal",), ("graph", "custom-metal")):
        with features.disabled(*off):
            assert largest(layer.forward(x), want) < 1e-6
            for result, wanted in calls_of_v1():
                close(result, wanted)
            loss = layer.forward(x).sqr().sum_all()
            assert loss.backward().get(layer.lora_b()) is not None


def test_s42_s43_messages_of_a_switched_off_graph() -> None:
    layer = trained(8, 8, 2)
    with features.disabled("graph"):
        with pytest.raises(mc.Error, match="feature `graph` not enabled; remove it from METAL_CANDLE_DISABLE"):
            LazyTensor.from_tensor(normal(2))
        with pytest.raises(AttributeError, match="no method named `forward_lazy` found"):
            layer.forward_lazy  # noqa: B018


def test_s45_mixing_kinds_works_or_says_how() -> None:
    x = normal(2, 3)
    assert isinstance(lifted(x) + x, LazyTensor)
    with pytest.raises(mc.Error, match=r"LazyTensor\.from_tensor"):
        x + lifted(x)


# --- the guide's programs ---------------------------------------------------------------------


def test_s36_the_crates_own_test() -> None:
    layer = LoRALayer.new(512, 512, LoRAConfig.default())
    output = layer.forward(Tensor.randn(0.0, 1.0, (1, 512), Device.Cpu))
    assert output.dims() == [1, 512]


def test_s37_the_recipe_lazy_against_eager() -> None:
    layer, x = trained(512, 512, 8), normal(4, 512)
    eager, lazy = layer.forward(x), layer.forward_lazy(LazyTensor.from_tensor(x)).eval()
    difference = eager.sub(lazy).abs().flatten_all().max(0)
    assert difference.to_scalar() < 1e-4


def test_s39_s40_s41_the_example_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    lora = LoRALayer.new(512, 512, LoRAConfig.default(), Device.Cpu)
    x = Tensor.randn(0.0, 1.0, (4, 512), Device.Cpu)
    print(lora.forward(x).shape)
    print(lora.forward_lazy(LazyTensor.from_tensor(x)).eval().shape)
    assert capsys.readouterr().out == "(4, 512)\n" * 2


def test_s28_s29_the_loop_of_v1_and_the_lazy_one() -> None:
    batch, labels = normal(1, 4, 16), Tensor([[1, 2, 3, 4]], dtype="u32")

    def losses(lazily: bool) -> list[float]:
        layer = trained(16, 16, 4, seed=9)
        optimizer = AdamW(AdamWConfig(learning_rate=1e-2), layer.trainable_variables())
        told = []
        for _ in range(4):
            logits = layer.forward_lazy(lifted(batch)).eval() if lazily else layer.forward(batch)
            loss = cross_entropy_loss(logits, labels)
            optimizer.backward_step(loss)
            told.append(float(loss.to_scalar()))
        return told

    eager = losses(lazily=False)
    assert eager[-1] < eager[0]
    np.testing.assert_allclose(losses(lazily=True), eager, rtol=1e-5)


# --- the page ---------------------------------------------------------------------------------


def test_every_promise_has_a_test_or_a_page() -> None:
    page = (ROOT / "docs" / "promises.md").read_text("utf-8")
    rows = re.findall(r"^\| (S\d\d) \|.*\| ([^|]+) \|$", page, flags=re.M)
    assert [name for name, _ in rows] == [f"S{i:02d}" for i in range(1, 53)]
    for name, places in rows:
        found = re.findall(
            r"`(tests/[\w/]+\.py)::(\w+)`|\]\(([\w/.]+\.md)[)#]|`((?:benchmarks|examples)/[\w.]+)`", places
        )
        assert found, name
        for file, test, linked, script in found:
            if file:
                assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{name}: {file}::{test}"
            elif linked:
                assert (ROOT / "docs" / linked).is_file(), f"{name}: {linked}"
            else:
                assert (ROOT / script).is_file(), f"{name}: {script}"
