"""Adapters that are unusual but right, or wrong in a way that gives plausible numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle.cli.convert import check_output
from metal_candle.error import CheckpointError, ModelError, ShapeMismatchError, TrainingError
from metal_candle.models.load import load_model
from metal_candle.tensor.eager import Tensor
from metal_candle.training import (
    CheckpointMetadata,
    LoRAAdapter,
    LoRAAdapterConfig,
    TargetModule,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    merged_weights,
    save_checkpoint,
)
from metal_candle.training.adapter_report import report_of
from metal_candle.training.formats import gguf_adapter, metal_candle, mlx_lm, peft
from metal_candle.training.formats.folder import CONFIG
from metal_candle.training.formats.recognise import read, write
from metal_candle.training.formats.stored import Factors, Format
from metal_candle.training.merge import merge_adapter

import mlx.core as mx
import numpy as np
import pytest
from adapters import change_config, change_tensors, random_adapter, random_factors, same_factors

Q0 = "model.layers.0.self_attn.q_proj"
V0 = "model.layers.0.self_attn.v_proj"
IDS = Tensor.new(np.arange(3, 12)[None])


@pytest.fixture(scope="module")
def model(tiny_model_dir: Callable[..., Path]) -> Any:
    return load_model(tiny_model_dir()).model


# --- reading ----------------------------------------------------------------------------------


def test_a_module_that_is_there_under_two_names_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    metal_candle.save(file, random_adapter())
    again = {f"{Q0}.lora_{which}": f"layers.0.q_proj.lora_{which}" for which in "ab"}
    change_tensors(file, lambda t: t.update({new: 5 * t[old] for new, old in again.items()}), keep_header=True)
    with pytest.raises(CheckpointError.InvalidFormat, match=f"{Q0} is there twice"):
        read(file)


@pytest.mark.parametrize("field", ["lora_alpha", "alpha_pattern"])
def test_numbers_beyond_a_double_are_refused_in_words(tmp_path: Path, field: str) -> None:
    peft.save(tmp_path, random_adapter())
    value = 10**400 if field == "lora_alpha" else {"q_proj": 10**400}
    change_config(tmp_path, lambda config: config.update({field: value}))
    with pytest.raises(CheckpointError.InvalidFormat, match="takes a number above 0"):
        read(tmp_path)


def test_a_rank_above_a_modules_width_computes_what_the_file_says(tmp_path: Path, model: Any) -> None:
    """PEFT takes any rank, and mlx-lm's one rank for all is the largest: k and v are 16 wide here."""
    ranks = {f"model.layers.{layer}.self_attn.q_proj": 24 for layer in (0, 1)}
    wide = random_adapter(random_factors(ranks=ranks))
    write(tmp_path / "peft", wide, "peft")
    write(tmp_path / "mlx-lm", read(tmp_path / "peft"), "mlx-lm")
    logits = []
    for name in ("peft", "mlx-lm"):
        model.apply_adapter(LoRAAdapter.load(tmp_path / name, model))
        logits.append(model.forward(IDS).numpy())
    model.remove_adapter()
    # Zeros are added: the same sums, perhaps in another order.
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    again = read(tmp_path / "mlx-lm").factors[V0]
    assert again.rank == 24
    assert again.norm() == pytest.approx(wide.factors[V0].norm())


@pytest.mark.parametrize("format", ["peft", "mlx-lm", "metal-candle"])
def test_a_loaded_adapter_has_its_dropout_off(tmp_path: Path, model: Any, format: str) -> None:
    write(tmp_path / "a", random_adapter(dropout=0.5), format)
    loaded = LoRAAdapter.load(tmp_path / "a", model)
    assert loaded.config().dropout == 0.5
    model.apply_adapter(loaded)
    first, second = model.forward(IDS).numpy(), model.forward(IDS).numpy()
    model.remove_adapter()
    np.testing.assert_array_equal(first, second)


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["peft", "mlx-lm", "metal-candle"])
@pytest.mark.parametrize("case", ["blocks", "modules"])
def test_a_choice_that_no_list_of_names_says_travels(tmp_path: Path, model: Any, format: str, case: str) -> None:
    """A regular expression of PEFT's, or its ``exclude_modules``: the factors alone say which modules are meant."""
    factors = random_factors(layers=(0,)) if case == "blocks" else random_factors()
    if case == "modules":
        del factors[Q0]
    peft.save(tmp_path / "from", random_adapter(factors))
    change_config(tmp_path / "from", lambda c: c.update(target_modules=".*_proj", layers_to_transform=None))
    write(tmp_path / "to", read(tmp_path / "from"), format)
    assert same_factors(read(tmp_path / "to").factors, factors)
    assert set(LoRAAdapter.load(tmp_path / "to", model).paths()) == set(factors)


def test_scales_too_far_apart_for_f32_are_not_folded(tmp_path: Path) -> None:
    for scale in (1e-45, 1e40):
        adapter = random_adapter(random_factors(scales={Q0: scale}))
        with pytest.raises(CheckpointError.InvalidFormat, match=Q0):
            mlx_lm.save(tmp_path / "mlx", adapter, fold_scales=True)


@pytest.mark.parametrize("format", ["peft", "mlx-lm"])
def test_no_kill_mixes_new_weights_with_an_old_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Killed at any rename, the folder holds the old adapter, the new one, or one that is refused."""
    old, factors = random_adapter(), random_factors(seed=1)
    new = random_adapter({path: replace(each, scale=32.0) for path, each in factors.items()}, scale=32.0)
    real = os.replace
    for stop in range(8):
        folder = tmp_path / str(stop)
        write(folder, old, format)
        left = [stop]

        class Killed(BaseException):
            pass

        def rename(source: Any, target: Any, left: list[int] = left, killed: type[BaseException] = Killed) -> None:
            if left[0] <= 0:
                raise killed
            left[0] -= 1
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", rename)
            with suppress(Killed):
                write(folder, new, format)
        try:
            found = read(folder).factors
        except CheckpointError:
            continue
        assert same_factors(found, old.factors) or same_factors(found, new.factors)


def test_an_adapter_is_not_converted_over_its_own_file(tmp_path: Path) -> None:
    peft.save(tmp_path / "a", random_adapter())
    for output in (tmp_path / "a" / peft.WEIGHTS, tmp_path / "a" / CONFIG):
        with pytest.raises(CheckpointError.SaveFailed, match="is the adapter that is converted"):
            check_output(tmp_path / "a", output, Format.MetalCandle, True)


# --- reports ----------------------------------------------------------------------------------


def test_a_delta_of_no_numbers_is_not_called_no_change() -> None:
    factors = random_factors()
    factors[Q0] = Factors(factors[Q0].a, mx.full(factors[Q0].b.shape, mx.nan), 1.0)
    text = str(report_of({Q0: factors[Q0]}))
    assert "nan" in text
    assert "nothing" not in text


@pytest.mark.filterwarnings("ignore:merging into f32 loses")
@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-8])
def test_what_f32_itself_rounds_away_is_measured(tmp_path: Path, model: Any, scale: float) -> None:
    factors = {path: replace(each, scale=scale) for path, each in random_factors().items()}
    write(tmp_path / "a", random_adapter(factors, scale=scale), "peft")
    adapter = LoRAAdapter.load(tmp_path / "a", model)
    merged = merge_adapter(model, adapter)
    for module, place in zip(merged.modules, [p for p in model.projections() if p.path in factors]):
        layer = adapter.layer_at(place.path)
        assert layer is not None
        a, b = layer.lora_a().numpy().astype(np.float64), layer.lora_b().numpy().astype(np.float64)
        weight = merged.weights[f"{place.path}.weight"]
        assert isinstance(weight, Tensor)
        lost = weight.numpy().astype(np.float64) - place.dense_weight().numpy() - layer.config().scaling() * (a @ b).T
        # The delta itself is a product in F32.
        assert module.lost == pytest.approx(np.linalg.norm(lost), rel=0.01, abs=1e-6 * module.delta)


# --- configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["q_proj", ["q_prj"], [None], ["mlp.q_proj"], None])
def test_targets_that_name_nothing_are_refused(targets: Any) -> None:
    with pytest.raises(TrainingError.InvalidLoRAConfig, match="target_modules"):
        LoRAAdapter(8, 16, 1, LoRAAdapterConfig(rank=2, target_modules=targets))


def test_targets_by_the_end_of_a_path_and_all_of_them() -> None:
    some = LoRAAdapter(8, 16, 1, LoRAAdapterConfig(rank=2, target_modules=["self_attn.q_proj", "mlp.up_proj"]))
    assert some.paths() == [Q0, "model.layers.0.mlp.up_proj"]
    assert len(LoRAAdapter(8, 16, 1, LoRAAdapterConfig(rank=2, target_modules=["all-linear"])).paths()) == 7


@pytest.mark.parametrize(
    "config", [{"rank": "2"}, {"alpha": "a"}, {"alpha": 10**400}, {"dropout": None}, {"rank": 2.0}]
)
def test_numbers_of_other_types_are_refused(config: Any) -> None:
    with pytest.raises(TrainingError.InvalidLoRAConfig, match=next(iter(config))):
        LoRAAdapter(8, 16, 1, LoRAAdapterConfig(**config))


# --- checkpoints ------------------------------------------------------------------------------


def test_metadata_that_is_saved_can_be_loaded(tmp_path: Path) -> None:
    """The clock gives a float, NumPy and tensors give numbers of their own."""
    adapter, file = LoRAAdapter(8, 16, 1, LoRAAdapterConfig(rank=2)), tmp_path / "c.safetensors"
    now = time.time()
    values: Any = {"global_step": np.int64(3), "loss": Tensor.new(1.5), "learning_rate": np.float32(0.5)}
    save_checkpoint(adapter, file, CheckpointMetadata(**values, timestamp=now))  # type: ignore[arg-type]
    assert load_checkpoint(adapter, file) == CheckpointMetadata(3, 1.5, 0.5, int(now))


@pytest.mark.parametrize(
    "values",
    [{"global_step": 1.5}, {"global_step": True}, {"global_step": float("nan")}, {"loss": "1"}, {"loss": None}],
)
def test_metadata_of_other_types_is_refused(values: Any) -> None:
    with pytest.raises(TypeError, match=f"CheckpointMetadata: .*{next(iter(values))}"):
        CheckpointMetadata(**{"global_step": 1, "loss": 1.0, "learning_rate": 1.0, **values})


def test_a_checkpoint_of_numbers_that_are_none_changes_nothing(tmp_path: Path) -> None:
    adapter, file = LoRAAdapter(8, 16, 1, LoRAAdapterConfig(rank=2)), tmp_path / "c.safetensors"
    save_checkpoint(adapter, file)
    change_tensors(file, lambda t: t.update({"layers.0.v_proj.lora_b": mx.full((2, 8), mx.inf)}), keep_header=True)
    before = adapter.layers()[0][1].lora_a().numpy()
    adapter.layers()[0][1].lora_a().set(Tensor.new(before + 1))
    with pytest.raises(CheckpointError.InvalidFormat, match=r"layers\.0\.v_proj\.lora_b .*not finite"):
        load_checkpoint(adapter, file)
    np.testing.assert_array_equal(adapter.layers()[0][1].lora_a().numpy(), before + 1)


# --- two answers to one question --------------------------------------------------------------


def test_a_configuration_of_both_formats_that_agrees_with_itself(tmp_path: Path) -> None:
    """Some programs write PEFT's fields and mlx-lm's into one ``adapter_config.json``."""
    both = {"lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}, "num_layers": -1}
    peft.save(tmp_path / "peft", random_adapter())
    change_config(tmp_path / "peft", lambda config: config.update(both))
    mlx_lm.save(tmp_path / "mlx", random_adapter())
    change_config(tmp_path / "mlx", lambda config: config.update(peft_type="LORA", r=4, lora_alpha=8))
    for name in ("peft", "mlx"):
        assert read(tmp_path / name).scale == 2.0
    change_config(tmp_path / "peft", lambda config: config["lora_parameters"].update(scale=20.0))
    change_config(tmp_path / "mlx", lambda config: config.update(lora_alpha=80))
    for name in ("peft", "mlx"):
        with pytest.raises(CheckpointError.InvalidFormat, match=r"lora_alpha .* over r .* contradict"):
            read(tmp_path / name)


# --- GGUF -------------------------------------------------------------------------------------


def test_small_numbers_are_not_rounded_to_nothing(tmp_path: Path, model: Any) -> None:
    """F16 has no numbers below 6e-8, and few below 6e-5, where B is after the first steps of a training."""
    small = {path: replace(each, b=each.b * 1e-7) for path, each in random_factors().items()}
    with pytest.raises(CheckpointError.InvalidFormat, match=r"lora_b .*F16.* takes f32"):
        gguf_adapter.save(tmp_path / "a.gguf", random_adapter(small), model.config, "f16")
    gguf_adapter.save(tmp_path / "a.gguf", random_adapter(small), model.config, "f32")


@pytest.mark.parametrize("scale", [1e-50, 1e38])
def test_an_alpha_outside_f32_is_refused(tmp_path: Path, model: Any, scale: float) -> None:
    """llama.cpp takes an alpha of 0 for none, and so a scale of 1."""
    factors = {path: replace(each, scale=scale) for path, each in random_factors().items()}
    with pytest.raises(CheckpointError.InvalidFormat, match=r"alpha .* F32"):
        gguf_adapter.save(tmp_path / "a.gguf", random_adapter(factors, scale=scale), model.config)


# --- merging ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_hidden_layers": 3}, "spans 2 layers, the model has 3"),
        ({"num_hidden_layers": 1}, "spans 2 layers, the model has 1"),
        ({"num_key_value_heads": 1}, "v_proj maps 32 to 16, the model 32 to 8"),
    ],
)
def test_an_adapter_of_another_model_is_not_merged(
    model: Any, tiny_model_dir: Callable[..., Path], settings: dict[str, int], text: str
) -> None:
    adapter, other = LoRAAdapter.for_model(model), load_model(tiny_model_dir(**settings)).model
    for _, layer in adapter.layers():
        layer.lora_b().set(layer.lora_b().as_tensor().ones_like())
    for merge in (merge_adapter, merged_weights):
        with pytest.raises(ModelError.InvalidConfig, match=text):
            merge(other, adapter)


@pytest.mark.parametrize("shape", [(1, 8), (8,), (8, 1), (4, 8, 8)])
def test_a_weight_of_another_shape_is_not_merged(shape: tuple[int, ...]) -> None:
    adapter = LoRAAdapter(8, 16, 1, LoRAAdapterConfig(rank=2))
    with pytest.raises(ShapeMismatchError, match="merge_weights"):
        adapter.merge_weights(Tensor.zeros(shape, "f32", "cpu"), 0, TargetModule.QProj)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_epochs": 1.5},
        {"num_epochs": "2"},
        {"max_grad_norm": "1"},
        {"lr_scheduler": 1e-3},
        {"optimizer_config": {}},
    ],
)
def test_a_trainers_settings_of_other_types_are_refused(settings: Any) -> None:
    with pytest.raises(TrainingError.InvalidConfig, match="takes"):
        Trainer(8, 16, 1, LoRAAdapterConfig(rank=2), TrainingConfig(**settings))
