"""Exact resume: the state of a run, what it refuses, and what survives NaN, Ctrl-C and a full disk."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle import CheckpointError, Device, Tensor, TrainingError
from metal_candle.formats import safetensors
from metal_candle.models import load_model
from metal_candle.nn import ParamsAdamW
from metal_candle.training import (
    AdamWConfig,
    AdapterTrainer,
    EarlyStopping,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    MetricsLog,
    SaveState,
    TargetModule,
    TrainingCallback,
    TrainingConfig,
    TrainingState,
    read_metrics,
)
from metal_candle.training.data import Example
from metal_candle.training.events import StepMetrics

import mlx.core as mx
import numpy as np
import pytest

TARGETS = (TargetModule.QProj, TargetModule.DownProj)
CONFIG = TrainingConfig(
    num_epochs=2,
    lr_scheduler=LRScheduler.warmup_cosine(2, 7, 1e-2, 1e-3),
    optimizer_config=ParamsAdamW(lr=1e-2),
    batch_size=2,
    accumulation_steps=2,
    eval_every=2,
    seed=5,
)
STEPS = 6


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    rows = []
    for line in range(count):
        tokens = rng.integers(3, 64, int(rng.integers(6, 30))).tolist()
        rows.append(Example(tokens, [i > 1 for i in range(len(tokens))], Path("made.jsonl"), line + 1))
    return rows


TRAIN, VALID = examples(10), examples(3, 1)


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir(num_hidden_layers=1, hidden_size=16, intermediate_size=32)


def fresh(
    folder: Path, callbacks: list[TrainingCallback] | None = None, config: TrainingConfig = CONFIG, dropout: float = 0.3
) -> AdapterTrainer:
    Device.default().set_seed(3)
    model = load_model(folder).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(2, 4.0, dropout, TARGETS))
    return AdapterTrainer(model, adapter, config, 2, callbacks or [])


def arrays(trainer: AdapterTrainer) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(array) for name, array in trainer.state().arrays.items()}


def assert_same_bits(trainer: AdapterTrainer, expected: dict[str, np.ndarray[Any, Any]]) -> None:
    found = arrays(trainer)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def told(events: Any) -> list[tuple[str, int, float]]:
    return [(type(event).__name__, event.step, event.loss) for event in events]


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[list[tuple[str, int, float]], dict[str, np.ndarray[Any, Any]]]:
    """What an uninterrupted run tells, and where it ends."""
    trainer = fresh(folder)
    return told(trainer.run(TRAIN, VALID)), arrays(trainer)


@pytest.mark.parametrize("stop", [0, 1, 2, 3, STEPS])
def test_a_run_goes_on_bit_for_bit(folder: Path, whole: Any, tmp_path: Path, stop: int) -> None:
    """Stopped before the first step, between a step and its evaluation, in the middle and at the end of an epoch."""
    trainer = fresh(folder)
    events = trainer.run(TRAIN, VALID)
    before = []
    for event in events:
        before.append(event)
        if trainer.step == stop:
            break
    events.close()  # type: ignore[attr-defined]
    trainer.save_state(tmp_path / "state")
    Device.default().set_seed(99)
    resumed = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model)
    assert resumed.step == stop
    assert told(before) + told(resumed.run(TRAIN, VALID)) == whole[0]
    assert_same_bits(resumed, whole[1])


def test_a_run_goes_on_in_another_thread(folder: Path, whole: Any) -> None:
    """Each thread has a random generator of its own; the one that trains goes on from the state's."""
    trainer = fresh(folder)
    events = trainer.run(TRAIN, VALID)
    while trainer.step < 2:
        next(events)
    events.close()  # type: ignore[attr-defined]
    resumed = AdapterTrainer.resume(trainer.state(), load_model(folder).model)
    Device.default().set_seed(99)
    thread = threading.Thread(target=lambda: list(resumed.run(TRAIN, VALID)))
    thread.start()
    thread.join()
    assert resumed.step == STEPS
    found = arrays(resumed)
    assert [name for name in found if name != "random.key" and not np.array_equal(found[name], whole[1][name])] == []


def test_saving_changes_nothing_and_a_state_is_a_moment(folder: Path, whole: Any, tmp_path: Path) -> None:
    trainer = fresh(
        folder, [MetricsLog(tmp_path / "m.jsonl"), SaveState(tmp_path / "state", every=1, adapter=tmp_path)]
    )
    early: list[TrainingState] = []
    for _ in trainer.run(TRAIN, VALID):
        if trainer.step == 1 and not early:
            early.append(trainer.state())
    assert_same_bits(trainer, whole[1])
    assert early[0].step == 1  # its arrays are those of that time
    trainer.load_state(early[0])
    list(trainer.run(TRAIN, VALID))
    assert_same_bits(trainer, whole[1])


def test_longer_runs_go_on_where_shorter_ones_ended(folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, num_epochs=3, eval_every=0)
    long = fresh(folder, config=config)
    list(long.run(TRAIN, VALID))
    short = fresh(folder, config=replace(config, num_epochs=1))
    list(short.run(TRAIN, VALID))
    short.save_state(tmp_path / "state")
    on = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model, num_epochs=3)
    list(on.run(TRAIN, VALID))
    assert on.step == long.step == 9
    assert_same_bits(on, arrays(long))


def test_the_crates_own_configuration_comes_back(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        num_epochs=1, lr_scheduler=LRScheduler.linear(3, 1e-3), optimizer_config=AdamWConfig(beta1=0.8)
    )
    trainer = fresh(folder, config=config)
    trainer.save_state(tmp_path / "state")
    on = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model, cache_limit=10**8)
    # as the optimizer takes it
    assert on.config == replace(config, cache_limit=10**8, optimizer_config=config.optimizer_params())

    class Own(LRScheduler):
        def get_lr(self, step: int) -> float:
            return 1e-3

    owned = replace(config, lr_scheduler=Own())
    fresh(folder, config=owned).save_state(tmp_path / "own")
    with pytest.raises(TrainingError.StateError, match="the run's schedule is a Own, which the file cannot make"):
        AdapterTrainer.resume(tmp_path / "own", load_model(folder).model)
    fresh(folder, config=owned).load_state(tmp_path / "own")


# --- what is refused --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "state"
    trainer = fresh(folder, config=replace(CONFIG, max_steps=1))
    list(trainer.run(TRAIN, VALID))
    trainer.save_state(path)
    return path


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


def test_a_state_that_is_saved_before_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """It still knows its data, and what the callbacks said of themselves."""
    config = replace(CONFIG, eval_every=1)
    trainer = fresh(folder, [EarlyStopping(patience=9)], config)
    next(trainer.run(TRAIN, VALID))
    first = trainer.state()
    assert first.callbacks
    again = AdapterTrainer.resume(first, load_model(folder).model, [EarlyStopping(patience=9)]).state()
    assert (again.callbacks, again.data) == (first.callbacks, first.data)


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


# --- what survives ----------------------------------------------------------------------------


class Poison(TrainingCallback):
    """Makes the weights NaN after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, trainer: Any) -> bool | None:
        if trainer.step == self.after:
            for var in trainer.adapter.trainable_variables():
                var.set(Tensor.full(float("nan"), var.shape))
        return None


@pytest.mark.parametrize(("after", "kept"), [(2, 2), (3, 2)])
def test_nan_leaves_the_last_good_checkpoint(folder: Path, whole: Any, tmp_path: Path, after: int, kept: int) -> None:
    """A state is written when its weights are known to be good: at step 2 by the evaluation, at step 3 not at all."""
    path = tmp_path / "state"
    trainer = fresh(folder, [SaveState(path, every=1, adapter=tmp_path / "adapter"), Poison(after)])
    with pytest.raises(TrainingError.Failed, match=f"loss is nan at step {after + 1}"):
        list(trainer.run(TRAIN, VALID))
    assert TrainingState.load(path).step == kept
    adapter = LoRAAdapter.load(tmp_path / "adapter", load_model(folder).model)
    assert all(np.isfinite(var.numpy()).all() for var in adapter.trainable_variables())
    on = AdapterTrainer.resume(path, load_model(folder).model)
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])


def test_a_held_out_loss_that_is_not_finite_is_not_saved(folder: Path, tmp_path: Path) -> None:
    class PoisonBefore(TrainingCallback):
        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
            if metrics.step == 2:
                for var in trainer.adapter.trainable_variables():
                    var.set(Tensor.full(float("nan"), var.shape))
            return None

    trainer = fresh(folder, [PoisonBefore(), SaveState(tmp_path / "state", every=1)])
    with pytest.raises(TrainingError.Failed, match="held-out loss is nan after step 2"):
        list(trainer.run(TRAIN, VALID))
    assert TrainingState.load(tmp_path / "state").step == 1


def interrupting(trainer: AdapterTrainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a KeyboardInterrupt come in the middle of a step, when variables are set already."""
    compute = trainer._compute

    def interrupted(group: Any, total: int) -> tuple[float, float]:
        result = compute(group, total)
        if trainer.step + 1 == step:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(trainer, "_compute", interrupted)


def test_an_interrupt_in_a_step_takes_all_of_it_back(
    folder: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks: list[TrainingCallback] = [MetricsLog(tmp_path / "m.jsonl"), SaveState(tmp_path / "state")]
    trainer = fresh(folder, callbacks)
    interrupting(trainer, 4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        list(trainer.run(TRAIN, VALID))
    assert TrainingState.load(tmp_path / "state").step == trainer.step == 3
    log = MetricsLog(tmp_path / "m.jsonl", append=True)
    on = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model, [log])
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])
    assert [record["step"] for record in read_metrics(tmp_path / "m.jsonl") if "loss" in record] == [1, 2, 3, 4, 5, 6]


def test_an_interrupt_between_the_first_batches_that_are_summed(
    folder: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first of them left in the sums goes, too."""
    trainer = fresh(folder)
    add, calls = trainer._add, []

    def interrupted(*tensors: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(*tensors)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(trainer.run(TRAIN, VALID))
    assert trainer.step == 0
    list(trainer.run(TRAIN, VALID))
    assert_same_bits(trainer, whole[1])


def test_an_error_of_a_callback_takes_back_the_step(folder: Path, whole: Any, tmp_path: Path) -> None:
    class Careless(TrainingCallback):
        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
            if metrics.step == 3:
                raise ValueError("mine")
            return None

    log = MetricsLog(tmp_path / "m.jsonl")
    trainer = fresh(folder, [log, Careless(), SaveState(tmp_path / "state")])
    with pytest.raises(ValueError, match="mine"):
        list(trainer.run(TRAIN, VALID))
    on = AdapterTrainer.resume(
        tmp_path / "state", load_model(folder).model, [MetricsLog(tmp_path / "m.jsonl", append=True)]
    )
    assert on.step == 2
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])
    assert [record["step"] for record in read_metrics(tmp_path / "m.jsonl") if "loss" in record] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that lets the disk be full from the n-th write of tensors on; 0 frees it."""
    left = [0]
    write = safetensors.to_bytes

    def limited(array: mx.array) -> memoryview:
        if left[0]:
            left[0] -= 1
            if not left[0]:
                left[0] = 1
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(array)

    def fill(after: int) -> None:
        left[0] = after

    monkeypatch.setattr(safetensors, "to_bytes", limited)
    return fill


@pytest.mark.parametrize("writes", [1, 2, 9, 14])
def test_a_full_disk_leaves_the_last_checkpoint(
    folder: Path, whole: Any, tmp_path: Path, full_disk: Callable[[int], None], writes: int
) -> None:
    path = tmp_path / "state"

    class Fill(TrainingCallback):
        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
            if metrics.step == 3:
                full_disk(writes)
            return None

    save = SaveState(path, every=2)
    trainer = fresh(folder, [Fill(), save])
    with pytest.raises(CheckpointError.SaveFailed, match="No space left on device; what was there is unchanged"):
        list(trainer.run(TRAIN, VALID))
    assert save.saved_step == TrainingState.load(path).step == 2
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    full_disk(0)
    on = AdapterTrainer.resume(path, load_model(folder).model)
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])


# --- the record of the run --------------------------------------------------------------------


def test_the_log_is_cut_where_the_state_was_saved(folder: Path, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 0, "held_out_loss": 4.0}, {"step": 1, "loss": 4.0}, {"step": 1, "held_out_loss": 3.9}]
    later = [{"step": 2, "loss": 3.0}, {"step": 2, "held_out_loss": 3.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines + later) + '{"step": 3, "lo')
    trainer = AdapterTrainer.resume(saved, load_model(folder).model, [MetricsLog(path, append=True)])
    list(trainer.run(TRAIN, VALID))
    assert read_metrics(path) == lines


def test_a_log_that_lacks_steps_says_so(folder: Path, saved: Path, tmp_path: Path) -> None:
    trainer = AdapterTrainer.resume(saved, load_model(folder).model, [MetricsLog(tmp_path / "new.jsonl")])
    with pytest.warns(UserWarning, match="no record of step 1, which the resumed run made"):
        list(trainer.run(TRAIN, VALID))
