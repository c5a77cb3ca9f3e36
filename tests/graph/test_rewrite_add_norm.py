"""A sum and its norm as one operation with two results: who uses the sum, what is held, which plan is whose."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, features, settings
from metal_candle.graph.differentiate import gradients
from metal_candle.graph.node import topological_order
from metal_candle.graph.operations.add_norm import AddLayerNorm, AddRMSNorm
from metal_candle.graph.operations.structure import Pick
from metal_candle.graph.plans import planned
from metal_candle.inference.step import CachedStep
from metal_candle.kernels import custom
from metal_candle.models import load_model
from metal_candle.nn import RmsNorm
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule

import emulator
import numpy as np
import pytest
from random_graph import SHAPES, build, draw_program
from rewriting import Gpu, applied, lowered

ModelDir = Callable[..., Path]
EPS = 1e-5


def tensor(*shape: int, seed: int = 0, dtype: str = "f32") -> Tensor:
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)).to_dtype(dtype)


def lazy(*shape: int, seed: int = 0, dtype: str = "f32") -> LazyTensor:
    return LazyTensor.from_tensor(tensor(*shape, seed=seed, dtype=dtype))


@pytest.fixture
def launched() -> Iterator[None]:
    """Kernels of ours are launched, by the emulator."""
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    with custom.using(emulator.Emulator()):
        yield


@pytest.fixture
def on_gpu() -> Iterator[None]:
    """Graphs are rewritten as for a GPU; nothing can be launched."""
    with custom.using(Gpu()):
        yield


def test_on_a_cpu_both_stay() -> None:
    x, r = lazy(5, 13), lazy(5, 13, seed=1)
    y = (x + r).rms_norm(EPS)
    names, reason = applied(y, rule="add_rms_norm")
    assert names == ["add", "rms_norm"]
    assert "no kernel of ours is launched here" in reason


def test_who_uses_the_sum_before_and_after_the_norm_takes_the_one_sum(on_gpu: None) -> None:
    x, r = lazy(5, 13), lazy(5, 13, seed=1)
    total = x + r
    before = total.exp()
    normed = total.rms_norm(EPS)
    after = total - normed * before
    del total, normed, before
    assert sorted(lowered(after)) == ["add_rms_norm", "exp", "mul", "pick", "pick", "sub"]


def test_a_sum_that_nothing_else_uses_is_not_picked(on_gpu: None) -> None:
    y = (lazy(5, 13) + lazy(5, 13, seed=1)).layer_norm(EPS)
    assert lowered(y) == ["add_layer_norm", "pick"]


def test_a_second_norm_of_the_sum_takes_the_sum(on_gpu: None) -> None:
    total = lazy(5, 13) + lazy(5, 13, seed=1)
    y = total.rms_norm(EPS) + total.layer_norm(EPS)
    del total
    assert sorted(lowered(y)) == ["add", "add_rms_norm", "layer_norm", "pick", "pick"]


def test_sums_of_sums(on_gpu: None) -> None:
    """Each block's sum is the next one's residual."""
    x = lazy(5, 13)
    for block in range(4):
        x = x + lazy(5, 13, seed=block + 1)
        x = x * x.rms_norm(EPS)
        x = x + lazy(5, 13, seed=block + 9)
        x = x - x.layer_norm(EPS)
    names = lowered(x)
    assert {name: names.count(name) for name in set(names)} == {
        "add_rms_norm": 4,
        "add_layer_norm": 4,
        "pick": 16,
        "mul": 4,
        "sub": 4,
    }


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_values_are_those_of_the_parts(launched: None, dtype: str) -> None:
    def value() -> list[Any]:
        x, r, w = lazy(5, 13, dtype=dtype), lazy(5, 13, seed=1, dtype=dtype), tensor(13, seed=2, dtype=dtype)
        total = x + r
        normed = RmsNorm(w, EPS).forward(total)
        product = total.exp() * normed
        mc.eval_all([product, total])
        return [each.to_dtype("f32").numpy() for each in (total, normed, product)]

    found = value()
    with features.disabled("rewrite"):
        wanted = value()
    np.testing.assert_array_equal(found[0], wanted[0])
    # A unit in the last place of the dtype: sums in another order, then the weight.
    unit = {"f32": 5e-7, "f16": 2e-3, "bf16": 1.6e-2}[dtype]
    for got, want in zip(found[1:], wanted[1:]):
        np.testing.assert_allclose(got, want, rtol=unit, atol=unit / 8)


def test_a_sum_that_somebody_holds_is_computed_once(launched: None) -> None:
    x, r = lazy(5, 13), lazy(5, 13, seed=1)
    total = x + r
    normed = total.rms_norm(EPS)
    assert sorted(lowered(normed)) == ["add_rms_norm", "pick", "pick"]
    normed.eval()
    assert total.is_evaluated()
    np.testing.assert_array_equal(total.numpy(), x.numpy() + r.numpy())


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_gradients(launched: None, dtype: str, held: bool) -> None:
    """Through both results, with the sum's node given another operation where somebody holds it, twice over."""

    def found() -> list[Any]:
        x, r, w = (
            Var.from_tensor(tensor(*shape, seed=i, dtype=dtype)) for i, shape in enumerate([(5, 13), (5, 13), (13,)])
        )
        total = LazyTensor.from_tensor(x) + LazyTensor.from_tensor(r)
        kept = [total] if held else []
        normed = RmsNorm(w, EPS).forward(total)
        y = total.exp() * normed + total
        following = (y + y.sin()).layer_norm(EPS) * total
        del total, normed
        first = y.sum_all().backward()
        second = following.sum_all().backward()
        grads = [each[v] for each in (first, second) for v in (x, r, w)]
        mc.eval_all([*grads, *kept, y])
        return [each.to_dtype("f32").numpy() for each in (*grads, *kept, y)]

    got = found()
    with features.disabled("rewrite"):
        wanted = found()
    for one, other in zip(got, wanted):
        scale = max(1.0, float(np.abs(other).max()))
        # Float32's roundings, and of bfloat16 some eight of 2^-8 behind each other.
        np.testing.assert_allclose(one, other, rtol=0, atol=(2e-5 if dtype == "f32" else 6e-2) * scale)


def test_inputs_come_before_what_uses_them(on_gpu: None) -> None:
    """Nodes that somebody holds keep their ids when a gradient is taken, although a new one makes their value."""
    rng, fired = random.Random(0), 0
    for _ in range(100):
        program = draw_program(rng)
        leaves = [Var.from_tensor(tensor(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
        values = build(program, [LazyTensor.from_tensor(leaf) for leaf in leaves], False, None)
        held = [values[rng.randrange(len(SHAPES), len(values))] for _ in range(3)]
        loss = values[-1].cos().sum_all().to_dtype("f32") + held[0].sin().sum_all().to_dtype("f32")
        del values
        for _ in range(2):
            order = topological_order([loss._node, *[each._node for each in held], *gradients(loss._node).values()])
            fired += sum(isinstance(node.operation, (AddRMSNorm, AddLayerNorm)) for node in order)
            assert all(source.id < node.id for node in order for source in node.inputs)
            loss = loss + held[1].tanh().sum_all().to_dtype("f32")
    assert fired > 30


def test_a_sum_that_an_earlier_rewrite_put_there(on_gpu: None) -> None:
    """Its id is a fraction, right behind its inputs: what makes it comes before it all the same."""
    x, r = (LazyTensor.from_tensor(Var.from_tensor(tensor(5, 13, seed=i))) for i in range(2))
    total = x + r
    total._node.id = Fraction(2 * r._node.id + 1, 2)
    normed = total.rms_norm(EPS)
    order = topological_order([total._node, normed._node, *gradients(normed._node).values()])
    assert isinstance(total._node.operation, Pick)
    assert all(source.id < node.id for node in order for source in node.inputs)


def test_a_weight_that_depends_on_the_sum(launched: None) -> None:
    x, r = lazy(5, 13), lazy(5, 13, seed=1)
    total = x + r
    y = RmsNorm(total.sum(0), EPS).forward(total)  # type: ignore[arg-type]
    assert "add_rms_norm" not in lowered(y)
    want = total.numpy() / np.sqrt((total.numpy() ** 2).mean(-1, keepdims=True) + EPS) * total.numpy().sum(0)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-5, atol=1e-5)


def test_a_weight_recorded_later_stays_apart(on_gpu: None) -> None:
    total = lazy(5, 13) + lazy(5, 13, seed=1)
    y = RmsNorm(tensor(13, seed=2), EPS).forward(total)
    del total
    names, reason = applied(y, rule="add_rms_norm")
    assert names == ["add", "weighted_rms_norm"]
    assert "the weight is recorded after the sum" in reason


def test_a_product_takes_what_is_added_to_it(on_gpu: None) -> None:
    """One launch for the product and the sum, one for the norm: no pass more, and one less than the other way."""
    x, h, w = lazy(5, 16), lazy(5, 24, seed=1), lazy(24, 16, seed=2)
    total = x + h @ w
    y = total - total.rms_norm(EPS)
    del total
    assert lowered(y) == ["add_matmul", "rms_norm", "sub"]


def test_a_plan_made_without_a_gpu_is_not_used_on_one() -> None:
    def recorded() -> LazyTensor:
        return (lazy(5, 13) + lazy(5, 13, seed=1)).rms_norm(EPS)

    def rules() -> set[str]:
        y = recorded()
        return set(planned([y._node])[1].rules)

    assert rules() == set()
    for _ in range(2):
        with custom.using(Gpu()):
            assert rules() == {"add_rms_norm"}
            with settings.KERNELS.override("reference"):
                assert rules() == set()
            with features.disabled("custom-metal"):
                assert rules() == set()
            with features.disabled("rewrite.add_norm"):
                assert rules() == set()
        assert rules() == set()


def test_rows_that_the_rule_leaves_apart(on_gpu: None) -> None:
    def names() -> list[str]:
        y = (lazy(1, 16_385) + lazy(1, 16_385, seed=1)).rms_norm(EPS)
        return lowered(y)

    assert names() == ["add", "rms_norm"]
    with settings.KERNELS.override("custom"):
        assert names() == ["add_rms_norm", "pick"]


def adapted(folder: Path, dtype: str) -> tuple[Any, LoRAAdapter]:
    model = load_model(folder, dtype).model
    adapter = LoRAAdapter.for_model(
        model, LoRAAdapterConfig(rank=2, target_modules=(TargetModule.OProj, TargetModule.DownProj))
    )
    for i, (_, layer) in enumerate(adapter.layers()):
        layer.lora_b().set(tensor(*layer.lora_b().shape, seed=i).to_dtype(layer.lora_b().dtype))
    model.apply_adapter(adapter)
    return model, adapter


def test_a_decoder_with_adapters(on_gpu: None, tiny_model_dir: ModelDir) -> None:
    """What is added to a low-rank update is added by the norm behind it: of two blocks each, and before the head."""
    model, _ = adapted(tiny_model_dir(), "f32")
    logits = model.forward(LazyTensor.new([[3, 4, 5, 6, 7]], dtype="u32"))
    names = lowered(logits)
    assert names.count("add_rms_norm") == 4
    assert names.count("weighted_rms_norm") == 1
    assert "add" not in names


def test_logits_and_gradients_of_a_decoder(launched: None, tiny_model_dir: ModelDir) -> None:
    model, adapter = adapted(tiny_model_dir(), "f32")

    def found() -> list[Any]:
        logits = model.forward(LazyTensor.new([[3, 4, 5, 6, 7]], dtype="u32"))
        grads = logits.sqr().mean_all().backward()
        variables = [v for _, layer in adapter.layers() for v in (layer.lora_a(), layer.lora_b())]
        return [logits.numpy(), *[grads[v].numpy() for v in variables]]

    got = found()
    with features.disabled("rewrite"):
        wanted = found()
    for one, other in zip(got, wanted):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1.0, float(np.abs(other).max())))


def test_decoding_step_by_step(launched: None, tiny_model_dir: ModelDir) -> None:
    """Halves: of float32 on the CPU a step goes through NumPy."""
    model, _ = adapted(tiny_model_dir(), "f16")

    def found() -> list[Any]:
        step = CachedStep(model)
        return [step.feed([3, 4, 5]), step.feed([6]), step.feed([7])]

    got = found()
    with features.disabled("rewrite"):
        wanted = found()
    for one, other in zip(got, wanted):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-2)
