"""What adapters, their registry, files and merges take: anything else is refused in one line that says what they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Tensor
from metal_candle.error import Error
from metal_candle.models.load import load_model
from metal_candle.models.target_module import TargetModule
from metal_candle.training import (
    AdapterRegistry,
    LoRAAdapter,
    LoRAAdapterConfig,
    LoRAConfig,
    LoRALayer,
    load_checkpoint,
    save_checkpoint,
)
from metal_candle.training.adapter import expect_fits, merged_weights
from metal_candle.training.formats import gguf_adapter, metal_candle, mlx_lm, peft
from metal_candle.training.formats.recognise import base_model, read, recognise, write
from metal_candle.training.formats.stored import Format
from metal_candle.training.merge import merge_adapter

import pytest

Q = TargetModule.QProj
WRONG: list[Any] = [None, 3, "x", [3], math.nan, math.inf, -1, True]


class Given:
    """What the calls need that is right: a model, an adapter for it, its files, a folder to write in."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2))
        self.layer, self.stored, self.saved = self.adapter.layers()[0][1], self.adapter.stored(), folder / "saved"
        self.adapter.save(self.saved)
        self.x, self.weight = Tensor.zeros((2, 32), "f32"), Tensor.zeros((32, 32), "f32")

    def registry(self) -> AdapterRegistry:
        registry = AdapterRegistry(self.model)
        registry.add_adapter("a", self.adapter)
        return registry


@pytest.fixture(scope="module")
def given(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(load_model(tiny_model_dir()).model, tmp_path_factory.mktemp("adapter"))


# What is called with a wrong argument; which of ``WRONG`` are right there; a word of the line.
CASES: list[tuple[Callable[[Given, Any], object], list[Any], str]] = [
    (lambda g, v: LoRAConfig(rank=v).validate(), [3], "rank"),
    (lambda g, v: LoRAConfig(alpha=v).validate(), [3], "alpha"),
    (lambda g, v: LoRAConfig(dropout=v).validate(), [], "dropout"),
    (lambda g, v: LoRAConfig(init=v).validate(), [], "init"),
    (lambda g, v: LoRALayer(v, 8, LoRAConfig(1)), [3], "in_features"),
    (lambda g, v: LoRALayer(8, v, LoRAConfig(1)), [3], "out_features"),
    (lambda g, v: LoRALayer(8, 8, v), [None], "LoRALayer"),
    (lambda g, v: LoRALayer(8, 8, None, v), [None], "device"),
    (lambda g, v: LoRALayer.for_factors(8, v, LoRAConfig(1)), [3], "out_features"),
    (lambda g, v: LoRALayer.for_factors(8, 8, LoRAConfig(), None, v), [None], "for_factors"),
    (lambda g, v: g.layer.forward(v), [], "LoRALayer"),
    (lambda g, v: g.layer(v), [], "LoRALayer"),
    (lambda g, v: g.layer.apply(v, g.x), [], "base"),
    (lambda g, v: g.layer.apply(g.x, v), [], "LoRALayer"),
    (lambda g, v: g.layer.forward_lazy(v), [], "forward_lazy"),
    (lambda g, v: g.layer.set_training(v), [True], "set_training"),
    (lambda g, v: LoRAAdapterConfig(rank=v).validate(), [3], "rank"),
    (lambda g, v: LoRAAdapterConfig(target_modules=v), [], "target_modules"),
    (lambda g, v: LoRAAdapterConfig().is_target(v), ["x"], "is_target"),
    (lambda g, v: LoRAAdapter(v, 64, 2), [], ""),
    (lambda g, v: LoRAAdapter(32, v, 2), [3], "intermediate_size"),
    (lambda g, v: LoRAAdapter(32, 64, v), [3], "num_layers"),
    (lambda g, v: LoRAAdapter(32, 64, 2, v), [None], "LoRAAdapterConfig"),
    (lambda g, v: LoRAAdapter(32, 64, 2, None, v), [None], "device"),
    (lambda g, v: LoRAAdapter.for_model(v), [], "LoRAAdapter.for_model: got model"),
    (lambda g, v: LoRAAdapter.for_model(g.model, v), [None], "LoRAAdapterConfig"),
    (lambda g, v: LoRAAdapter.of_layers(v, {}, 2), [], "of_layers"),
    (lambda g, v: LoRAAdapter.of_layers(LoRAAdapterConfig(), v, 2), [], "of_layers"),
    (lambda g, v: LoRAAdapter.of_layers(LoRAAdapterConfig(), {}, v), [3, -1], "of_layers"),
    (lambda g, v: g.adapter.get_layer(v, Q), [3, -1], "get_layer: got layer_idx"),
    (lambda g, v: g.adapter.get_layer(0, v), [], "get_layer: got module"),
    (lambda g, v: g.adapter.layer_at(v), ["x"], "layer_at"),
    (lambda g, v: g.adapter.forward(0, v, g.x), [], "module"),
    (lambda g, v: g.adapter.forward(0, Q, v), [], "tensor"),
    (lambda g, v: g.adapter.num_frozen_parameters(v), [3, -1], "total"),
    (lambda g, v: g.adapter.set_training(v), [True], "training"),
    (lambda g, v: g.adapter.merge_weights(v, 0, Q), [], "merge_weights"),
    (lambda g, v: g.adapter.merge_weights(g.weight, 0, v), [], "module"),
    (lambda g, v: g.adapter.report(v), [None], "report: got model"),
    (lambda g, v: g.adapter.save(v), ["x"], "save: got path"),
    (lambda g, v: g.adapter.save(g.folder / "new", v), [None, "x"], "save: got base_model"),
    (lambda g, v: g.adapter.save(g.folder / "new", None, v), [], "adapter format"),
    (lambda g, v: g.adapter.save(g.folder / "new", None, "peft", v), [True], "fold_scales"),
    (lambda g, v: LoRAAdapter.load(v, g.model), [], ""),
    (lambda g, v: LoRAAdapter.load(g.saved, v), [], "load: got model"),
    (lambda g, v: LoRAAdapter.load(g.saved, g.model, v), [None], "alpha"),
    (lambda g, v: merged_weights(v, g.adapter), [], "merged_weights: got model"),
    (lambda g, v: merged_weights(g.model, v), [], "merged_weights: got adapter"),
    (lambda g, v: expect_fits(g.model, v), [], "expect_fits"),
    (lambda g, v: merge_adapter(v, g.adapter), [], "merge_adapter: got model"),
    (lambda g, v: merge_adapter(g.model, v), [], "merge_adapter: got adapter"),
    (lambda g, v: merge_adapter(g.model, g.adapter, v), [], ""),
    (lambda g, v: merge_adapter(g.model, g.adapter).worst(v), [3, -1], "worst"),
    (lambda g, v: AdapterRegistry(v), [None], "AdapterRegistry: got model"),
    (lambda g, v: g.registry().add_adapter(v, g.adapter), ["x"], "add_adapter: got name"),
    (lambda g, v: g.registry().add_adapter("b", v), [], "add_adapter: got adapter"),
    (lambda g, v: g.registry().load_adapter_from_checkpoint(v, g.adapter, "none"), [], ""),
    (lambda g, v: g.registry().load_adapter_from_checkpoint("b", v, "none"), [], "adapter"),
    (lambda g, v: g.registry().load_adapter_from_checkpoint("b", g.adapter, v), [], ""),
    (lambda g, v: g.registry().unload_adapter(v), [], ""),
    (lambda g, v: g.registry().activate(v), [], ""),
    (lambda g, v: g.registry().get_adapter(v), ["x"], "get_adapter"),
    (lambda g, v: g.model.apply_adapter(v), [], "apply_adapter"),
    (lambda g, v: TargetModule.from_name(v), ["x"], "from_name"),
    (lambda g, v: save_checkpoint(v, g.folder / "c"), [], "save_checkpoint: got adapter"),
    (lambda g, v: load_checkpoint(v, g.folder / "c"), [], "load_checkpoint: got adapter"),
    (lambda g, v: Format.of(v), [], "takes peft, mlx-lm, metal-candle, gguf"),
    (lambda g, v: read(v), [], ""),
    (lambda g, v: recognise(v), [], ""),
    (lambda g, v: base_model(v), [], ""),
    (lambda g, v: write(g.folder / "new", v, "peft"), [], "write: got adapter"),
    (lambda g, v: write(g.folder / "new-2", g.stored, "mlx-lm", v), [None, 3, -1], "num_layers"),
    *((lambda g, v, load=each.load: load(v), [], "") for each in (peft, mlx_lm, metal_candle)),  # type: ignore[misc]
    *((lambda g, v, save=each.save: save(v, g.stored), ["x"], "") for each in (peft, mlx_lm, metal_candle)),  # type: ignore[misc]
    (lambda g, v: gguf_adapter.save(g.folder / "a.gguf", g.stored, v), [], "save: got base"),
    (lambda g, v: gguf_adapter.save(g.folder / "a.gguf", g.stored, g.model.config, v), [], ""),
]


@pytest.mark.parametrize(("call", "right", "word"), CASES)
def test_wrong_arguments_are_refused_in_one_line(
    given: Given,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    call: Callable[[Given, Any], object],
    right: list[Any],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in WRONG:
        if any(value is each for each in right):
            call(given, value)
            continue
        with pytest.raises(Error) as raised:
            call(given, value)
        assert "\n" not in str(raised.value)
        if not isinstance(value, str):
            assert word in str(raised.value)


def test_names_of_adapters_are_texts(given: Given) -> None:
    registry = given.registry()
    assert "a" in registry
    assert [3] not in registry


def test_factors_of_other_sizes_and_dtypes_are_refused() -> None:
    import mlx.core as mx

    a, b = mx.zeros((8, 2)), mx.zeros((2, 4))
    layer = LoRALayer.for_factors(8, 4, LoRAConfig(2), None, (a, b))
    assert layer.lora_a().shape == (8, 2)
    for pair in ((b, a), (a.T, b), (a, b.astype(mx.float16))):
        with pytest.raises(Error, match=r"for_factors: got [AB] \(.*; takes \(.*\) f32"):
            LoRALayer.for_factors(8, 4, LoRAConfig(2), None, pair)


def test_factors_stay_when_their_arrays_are_changed_in_place() -> None:
    import mlx.core as mx

    a, b = mx.ones((8, 2)), mx.ones((2, 4))
    layer = LoRALayer.for_factors(8, 4, LoRAConfig(2), None, (a, b))
    a[0], b[0] = 9.0, 9.0
    for factor in (layer.lora_a(), layer.lora_b()):
        assert (factor.numpy() == 1).all()
