"""The registry: its table, and switches that touch neither base weights nor the other adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import ArgumentTypeError, CheckpointError, LazyTensor, ModelError, Tensor, TrainingError, compile
from metal_candle.models import Decoder, load_model
from metal_candle.training import (
    AdapterRegistry,
    ApplyAdapter,
    LoRAAdapter,
    LoRAAdapterConfig,
    TargetModule,
    save_checkpoint,
)

import numpy as np
import pytest

ModelDir = Callable[..., Path]
IDS = Tensor([[3, 4, 5, 6]])


def adapter_of(model: Decoder, seed: int, targets: tuple[TargetModule, ...] = tuple(TargetModule)) -> LoRAAdapter:
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2, target_modules=targets))
    rng = np.random.default_rng(seed)
    for var in adapter.trainable_variables():
        var.set(Tensor(0.2 * rng.standard_normal(tuple(var.shape)).astype(np.float32)))
    return adapter


@pytest.fixture
def model(tiny_model_dir: ModelDir) -> Decoder:
    return load_model(tiny_model_dir()).model


def test_the_table_without_a_model(model: Decoder) -> None:
    registry = AdapterRegistry()
    assert registry.is_empty()
    first, second = adapter_of(model, 0), adapter_of(model, 1)
    registry.add_adapter("b", first)
    registry.add_adapter("a", second)
    assert registry.list_adapters() == ["b", "a"]
    assert len(registry) == 2
    assert "a" in registry
    assert registry.active_adapter() is None
    assert registry.get_active() is None
    registry.activate("a")
    assert registry.active_adapter() == "a"
    assert registry.get_active() is second
    assert registry.get_adapter("b") is first
    assert registry.get_adapter("c") is None
    registry.unload_adapter("b")
    assert registry.active_adapter() == "a"
    registry.unload_adapter("a")
    assert registry.active_adapter() is None
    assert registry.is_empty()


def test_errors_say_what_is_there(model: Decoder) -> None:
    registry = AdapterRegistry(model)
    with pytest.raises(TrainingError.InvalidConfig, match="no adapter x; registered: none"):
        registry.activate("x")
    adapter = adapter_of(model, 0)
    registry.add_adapter("a", adapter)
    with pytest.raises(TrainingError.InvalidConfig, match="adapter a is registered already"):
        registry.add_adapter("a", adapter)
    with pytest.raises(TrainingError.InvalidConfig, match="no adapter x; registered: a"):
        registry.unload_adapter("x")
    with pytest.raises(ArgumentTypeError, match="takes a LoRAAdapter"):
        registry.add_adapter("b", {})  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="AdapterRegistry: got model a dict; takes a model with apply_adapter"):
        AdapterRegistry({})  # type: ignore[arg-type]


def test_the_active_adapter_acts_in_the_model_and_the_base_stays(model: Decoder) -> None:
    assert isinstance(model, ApplyAdapter)
    weights = {name: (tensor.id(), tensor.numpy().copy()) for name, tensor in model.weights().items()}
    plain = model(IDS).numpy()
    registry = AdapterRegistry(model)
    adapters = {name: adapter_of(model, seed) for seed, name in enumerate("abc")}
    expected = {}
    for name, adapter in adapters.items():
        registry.add_adapter(name, adapter)
        model.apply_adapter(adapter)
        expected[name] = model(IDS).numpy()
    model.remove_adapter()
    for name in "abcacb":
        registry.activate(name)
        assert np.array_equal(model(IDS).numpy(), expected[name])
    assert len({expected[name].tobytes() for name in "abc"}) == 3
    registry.deactivate()
    assert np.array_equal(model(IDS).numpy(), plain)
    registry.activate("b")
    registry.unload_adapter("b")
    assert not model.has_adapter()
    assert {name: tensor.id() for name, tensor in model.weights().items()} == {n: id for n, (id, _) in weights.items()}
    assert all(np.array_equal(tensor.numpy(), weights[name][1]) for name, tensor in model.weights().items())


def test_deactivate_takes_out_what_a_trainer_left_in_the_model(model: Decoder) -> None:
    plain = model(IDS).numpy()
    registry = AdapterRegistry(model)
    model.apply_adapter(adapter_of(model, 0))
    registry.deactivate()
    assert not model.has_adapter()
    assert np.array_equal(model(IDS).numpy(), plain)


def test_what_was_applied_past_the_registry_counts(model: Decoder) -> None:
    registry = AdapterRegistry(model)
    adapters = {name: adapter_of(model, seed) for seed, name in enumerate("ab")}
    for name, adapter in adapters.items():
        registry.add_adapter(name, adapter)
    model.apply_adapter(adapters["b"])
    assert (registry.active_adapter(), registry.get_active()) == ("b", adapters["b"])
    registry.activate("a")
    model.apply_adapter(adapters["b"])
    assert repr(registry) == "AdapterRegistry(2 adapters, active: 'b')"
    model.apply_adapter(adapter_of(model, 2))
    assert (registry.active_adapter(), registry.get_active()) == (None, None)
    registry.unload_adapter("a")
    assert model.has_adapter()  # "a" did not act any more
    model.remove_adapter()
    assert registry.active_adapter() is None
    registry.activate("b")
    model.remove_adapter()
    assert registry.active_adapter() is None


def test_an_adapter_without_layers_may_be_the_active_one(model: Decoder) -> None:
    registry = AdapterRegistry(model)
    registry.add_adapter("none", adapter_of(model, 0, ()))
    assert registry.active_adapter() is None
    registry.activate("none")
    assert registry.active_adapter() == "none"
    model.apply_adapter(adapter_of(model, 1))
    assert registry.active_adapter() is None


def test_one_adapter_by_two_names_is_active_by_the_one_that_was_asked_for(model: Decoder) -> None:
    registry, adapter = AdapterRegistry(model), adapter_of(model, 0)
    for name in "ab":
        registry.add_adapter(name, adapter)
    registry.activate("b")
    assert registry.active_adapter() == "b"
    model.apply_adapter(adapter)
    assert registry.active_adapter() == "b"


def test_an_adapter_of_fewer_targets_leaves_nothing_of_the_one_before(model: Decoder) -> None:
    registry = AdapterRegistry(model)
    registry.add_adapter("all", adapter_of(model, 0))
    registry.add_adapter("down", adapter_of(model, 1, (TargetModule.DownProj,)))
    registry.activate("all")
    registry.activate("down")
    adapted = [place.target for place in model.projections() if place.adapter is not None]
    assert adapted == [TargetModule.DownProj, TargetModule.DownProj]


class Counting:
    """A model that counts what a switch does to it, and lets through nothing else."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.asked, self.applied = model, 0, 0

    def apply_adapter(self, adapter: Any) -> None:
        self.applied += 1
        outer = self

        class Source:
            def num_layers(self) -> int:
                return int(adapter.num_layers())

            def layer_at(self, path: str) -> Any:
                outer.asked += 1
                return adapter.layer_at(path)

        self.model.apply_adapter(Source())

    def remove_adapter(self) -> None:
        self.model.remove_adapter()

    def has_adapter(self) -> bool:
        return self.model.has_adapter()


@pytest.mark.parametrize("count", [2, 40])
def test_a_switch_costs_the_same_however_many_there_are(model: Decoder, count: int) -> None:
    counting = Counting(model)
    registry = AdapterRegistry(counting)
    pair = adapter_of(model, 0), adapter_of(model, 1)
    for i in range(count):
        registry.add_adapter(f"a{i}", pair[i % 2])
    sizes = set()
    for name in ("a0", f"a{count - 1}"):
        counting.asked = counting.applied = 0
        registry.activate(name)
        assert (counting.applied, counting.asked) == (1, len(model.projections()))
        sizes.add(model(LazyTensor.from_tensor(IDS)).graph_size())
    # Only the active one is in the graph.
    model.apply_adapter(pair[0])
    assert sizes == {model(LazyTensor.from_tensor(IDS)).graph_size()}


def test_a_compiled_model_sees_the_switch_and_replays_afterwards(model: Decoder) -> None:
    registry = AdapterRegistry(model)
    forward = compile(lambda ids: model(ids))
    expected = {None: model(IDS).numpy()}
    for seed, name in enumerate("ab"):
        registry.add_adapter(name, adapter_of(model, seed))
        registry.activate(name)
        expected[name] = model(IDS).numpy()
    for _ in range(3):
        for name in ("a", "b", None):
            if name is None:
                registry.deactivate()
            else:
                registry.activate(name)
            np.testing.assert_allclose(forward(IDS).numpy(), expected[name], atol=1e-6)
    # One plan for each adapter, and one without.
    assert forward.traces == 3
    assert "adapter of Projection" in forward.explain()


def test_an_adapter_that_does_not_fit_leaves_the_active_one(model: Decoder) -> None:
    registry = AdapterRegistry(model)
    registry.add_adapter("good", adapter_of(model, 0))
    registry.add_adapter("deep", LoRAAdapter(32, 64, 3, LoRAAdapterConfig(rank=2)))
    registry.activate("good")
    before = model(IDS).numpy()
    with pytest.raises(ModelError.InvalidConfig, match="the adapter spans 3 layers, the model has 2"):
        registry.activate("deep")
    # Keys and values are narrower in this model: its two heads are shared.
    registry.add_adapter("wide", LoRAAdapter(32, 64, 2, LoRAAdapterConfig(rank=2)))
    with pytest.raises(ModelError.InvalidConfig, match=r"0\.self_attn\.v_proj maps 32 to 32, the model 32 to 16"):
        registry.activate("wide")
    assert registry.active_adapter() == "good"
    assert np.array_equal(model(IDS).numpy(), before)


def test_loading_from_a_checkpoint_registers_all_or_nothing(model: Decoder, tmp_path: Path) -> None:
    stored, blank = adapter_of(model, 0), adapter_of(model, 1)
    save_checkpoint(stored, tmp_path / "a.safetensors")
    registry = AdapterRegistry(model)
    with pytest.raises(CheckpointError.LoadFailed, match=r"none\.safetensors"):
        registry.load_adapter_from_checkpoint("a", blank, tmp_path / "none.safetensors")
    assert registry.is_empty()
    registry.load_adapter_from_checkpoint("a", blank, tmp_path / "a.safetensors")
    assert registry.get_adapter("a") is blank
    for mine, other in zip(blank.trainable_variables(), stored.trainable_variables()):
        assert np.array_equal(mine.numpy(), other.numpy())
    third = adapter_of(model, 2)
    before = third.trainable_variables()[0].numpy().copy()
    with pytest.raises(TrainingError.InvalidConfig, match="registered already"):
        registry.load_adapter_from_checkpoint("a", third, tmp_path / "a.safetensors")
    assert np.array_equal(third.trainable_variables()[0].numpy(), before)
