"""What a state is not loaded into, and a run not continued with: named, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from metal_candle import CheckpointError, TrainingError
from metal_candle.formats import safetensors
from metal_candle.models import load_model
from metal_candle.nn import ParamsAdamW
from metal_candle.training import AdapterTrainer, LoRAAdapter, TrainingState
from metal_candle.training.data import Example

import mlx.core as mx
import pytest
from resumed_runs import CONFIG, TRAIN, VALID, arrays, assert_same_bits, fresh


def test_other_data_are_refused_by_name(folder: Path, saved: Path) -> None:
    def refused(train: list[Example], valid: list[Example]) -> str:
        with pytest.raises(TrainingError.StateError) as raised:
            AdapterTrainer.resume(saved, load_model(folder).model).run(train, valid)
        return str(raised.value)

    assert "training rows are 9 of " in refused(TRAIN[1:], VALID)
    assert "training rows are as many as there, with another content or order" in refused(TRAIN[::-1], VALID)
    assert "held-out rows are 0 of 0 tokens here, 3 of " in refused(TRAIN, [])


def test_other_data_are_refused_however_often(folder: Path, saved: Path, tmp_path: Path) -> None:
    trainer = AdapterTrainer.resume(saved, load_model(folder).model)
    for _ in range(2):
        with pytest.raises(TrainingError.StateError, match="with another content or order"):
            trainer.run(TRAIN[::-1], VALID)
    trainer.save_state(tmp_path / "again")
    assert TrainingState.load(tmp_path / "again").data == TrainingState.load(saved).data


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_adapter_that_does_not_act_is_not_trained(folder: Path, accumulation: int) -> None:
    trainer = fresh(folder, config=replace(CONFIG, accumulation_steps=accumulation))
    AdapterTrainer(trainer.model, LoRAAdapter.for_model(trainer.model), CONFIG)
    before = arrays(trainer)
    with pytest.raises(TrainingError.StateError, match="another adapter acts in the model, or none"):
        list(trainer.run(TRAIN))
    assert_same_bits(trainer, before)
    trainer.model.apply_adapter(trainer.adapter)
    list(trainer.run(TRAIN))


def test_what_differs_is_named_and_nothing_is_changed(
    folder: Path, saved: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    slower = replace(CONFIG, optimizer_config=ParamsAdamW(lr=1e-3), batch_size=3, num_epochs=9)
    trainer = fresh(folder, config=slower)
    before = arrays(trainer)
    with pytest.raises(TrainingError.StateError) as raised:
        trainer.load_state(saved)
    assert "optimizer_config.lr is 0.001 here, 0.01 there" in str(raised.value)
    assert "batch_size is 3 here, 2 there" in str(raised.value)
    assert "num_epochs" not in str(raised.value)
    assert_same_bits(trainer, before)
    assert trainer.step == 0
    with pytest.raises(TrainingError.StateError, match=r"dropout=0\.0.* here, .*dropout=0\.3.* there"):
        fresh(folder, dropout=0.0).load_state(saved)
    other = tiny_model_dir(num_hidden_layers=1, hidden_size=16, intermediate_size=32, seed=1)
    with pytest.raises(TrainingError.StateError, match="the model: the weights have other values"):
        AdapterTrainer.resume(saved, load_model(other).model)
    with pytest.raises(TrainingError.StateError, match="the model: dtype is bf16 here, f32 there"):
        AdapterTrainer.resume(saved, load_model(folder, "bf16").model)
    with pytest.raises(TrainingError.InvalidConfig, match="resume: batch_size is the run's own; takes num_epochs"):
        AdapterTrainer.resume(saved, load_model(folder).model, batch_size=4)


def test_a_state_is_loaded_whole_or_not_at_all(folder: Path, saved: Path) -> None:
    state = TrainingState.load(saved)
    trainer = fresh(folder)
    before = arrays(trainer)
    missing = {name: array for name, array in state.arrays.items() if not name.endswith(".m")}
    shaped = {**state.arrays, "adapter.model.layers.0.self_attn.q_proj.a": mx.zeros((3, 3))}
    for wrong in (missing, shaped):
        with pytest.raises(TrainingError.StateError):
            trainer.load_state(replace(state, arrays=wrong))
        assert_same_bits(trainer, before)


def test_files_that_are_no_state(folder: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError.LoadFailed, match="no such file"):
        TrainingState.load(tmp_path / "none")
    whole = saved.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(CheckpointError.InvalidFormat, match="cut"):
            TrainingState.load(tmp_path / "cut")
    safetensors.save(tmp_path / "other", {"a": mx.zeros(3)})
    with pytest.raises(CheckpointError.InvalidFormat, match="other is no training state"):
        TrainingState.load(tmp_path / "other")
    metadata = dict(safetensors.read_header(saved).metadata)
    tensors = {name: safetensors.Reader(saved).array(name) for name in safetensors.read_header(saved).tensors}
    safetensors.save(tmp_path / "later", tensors, {**metadata, "version": "9"})
    with pytest.raises(CheckpointError.InvalidFormat, match="has version 9 of the format; this metal-candle reads 1"):
        TrainingState.load(tmp_path / "later")
    record = json.loads(metadata["state"])
    record["config"]["momentum"] = 1
    safetensors.save(tmp_path / "field", tensors, {**metadata, "state": json.dumps(record)})
    with pytest.raises(CheckpointError.InvalidFormat, match="TrainingConfig has momentum there"):
        AdapterTrainer.resume(tmp_path / "field", load_model(folder).model)
    del record["position"]
    safetensors.save(tmp_path / "less", tensors, {**metadata, "state": json.dumps(record)})
    with pytest.raises(CheckpointError.InvalidFormat, match="less: damaged: KeyError"):
        TrainingState.load(tmp_path / "less")


def test_a_refused_resume_leaves_the_model_as_it_was(saved: Path, tiny_model_dir: Callable[..., Path]) -> None:
    other = load_model(tiny_model_dir(num_hidden_layers=1, hidden_size=16, intermediate_size=32, seed=1)).model
    with pytest.raises(TrainingError.StateError, match="the model: the weights have other values"):
        AdapterTrainer.resume(saved, other)
    assert not other.has_adapter()


def test_numbers_that_are_none_make_a_damaged_file(saved: Path, tmp_path: Path) -> None:
    metadata = dict(safetensors.read_header(saved).metadata)
    tensors = {name: safetensors.Reader(saved).array(name) for name in safetensors.read_header(saved).tensors}
    for key, value in (("step", "x"), ("step", -1), ("pad_id", "x")):
        record = json.loads(metadata["state"])
        (record if key in record else record["position"])[key] = value
        safetensors.save(tmp_path / "odd", tensors, {**metadata, "state": json.dumps(record)})
        with pytest.raises(CheckpointError.InvalidFormat, match="odd: "):
            TrainingState.load(tmp_path / "odd")
