"""Arguments of another kind: one line that names the operation, what it got and what it takes, never a raw error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from metal_candle import ArgumentTypeError, CheckpointError, DataError, Error, Tensor, TrainingError, Var
from metal_candle.models import load_model
from metal_candle.models.load import load_config
from metal_candle.training import (
    AdamW,
    AdamWConfig,
    AdapterTrainer,
    EarlyStopping,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    MetricsLog,
    SaveBest,
    SaveState,
    Trainer,
    TrainingConfig,
    TrainingState,
    TrainingStep,
    cross_entropy_loss,
    load_checkpoint,
    plan_memory,
    plot_loss,
    read_metrics,
    render_curve,
    save_checkpoint,
)
from metal_candle.training import data as training_data
from metal_candle.training.curves import loss_series
from metal_candle.training.data import Example
from metal_candle.training.formats import recognise
from metal_candle.training.memory import batch_of, longest_batch

import pytest

WRONG: tuple[Any, ...] = (None, 3, "x", "\0", [3], [None], math.nan, math.inf, -1, True, object(), {})
CONFIG = TrainingConfig(num_epochs=1, batch_size=2)

Call = tuple[str, Callable[..., object], dict[str, Any]]


def example() -> Example:
    return Example([3, 4, 5, 6], [False, False, True, True], Path("made.jsonl"), 1)


def raw_errors(calls: Iterable[Call]) -> list[str]:
    """Every call with one argument after the other replaced by each wrong value: what is no error of ours."""
    found = []
    for name, function, good in calls:
        function(**good)
        for argument in good:
            for value in WRONG:
                try:
                    function(**{**good, argument: value})
                except Error as error:
                    if "\n" in str(error):
                        found.append(f"{name}({argument}={value!r}): several lines: {error}")
                except Exception as error:
                    found.append(f"{name}({argument}={value!r}): {error!r}")
    return found


def test_configurations_schedules_and_optimizers() -> None:
    def checked(kind: Callable[..., Any]) -> Callable[..., object]:
        return lambda **values: kind(**values).validate()

    def rates(kind: Callable[..., LRScheduler]) -> Callable[..., object]:
        return lambda **values: [kind(**values).get_lr(step) for step in (0, 1, 9)]

    schedules: list[tuple[Callable[..., LRScheduler], dict[str, Any]]] = [
        (LRScheduler.Constant, {"lr": 0.1}),
        (LRScheduler.Linear, {"warmup_steps": 2, "max_lr": 0.1}),
        (LRScheduler.Cosine, {"total_steps": 2, "max_lr": 0.1, "min_lr": 0.0}),
        (LRScheduler.WarmupCosine, {"warmup_steps": 1, "total_steps": 3, "max_lr": 0.1, "min_lr": 0.0}),
    ]
    var, grad = Var.zeros(2, "f32"), Tensor.ones(2, "f32")

    def named(method: str, *names: str) -> Callable[..., object]:
        optimizer = AdamW()
        optimizer.add_parameter("w", grad)
        return lambda **values: getattr(optimizer, method)(*(values[name] for name in names))

    calls: list[Call] = [
        ("TrainingConfig", checked(TrainingConfig), vars(CONFIG)),
        ("AdamWConfig", checked(AdamWConfig), vars(AdamWConfig())),
        ("AdamW", AdamW, {"config": None, "vars": None}),
        ("AdamW.step", named("step", "name", "param", "grad"), {"name": "w", "param": grad, "grad": grad}),
        ("AdamW.step_var", named("step_var", "var", "grad"), {"var": var, "grad": grad}),
        ("AdamW.step_vars", named("step_vars", "grads", "max_norm"), {"grads": {var: grad}, "max_norm": 1.0}),
        ("AdamW.backward_step", named("backward_step", "loss"), {"loss": var.sqr().sum_all()}),
        ("AdamW.set_lr", named("set_lr", "lr"), {"lr": 0.1}),
        ("AdamW.moments", named("moments", "parameter"), {"parameter": "w"}),
        ("AdamW.load_state", named("load_state", "state"), {"state": named("state")()}),
        *((kind.__name__, checked(kind), values) for kind, values in schedules),
        *((kind.__name__, rates(kind), values) for kind, values in schedules),
        ("get_lr", LRScheduler.linear(2, 0.1).get_lr, {"step": 0}),
        ("EarlyStopping", EarlyStopping, {"patience": 3, "min_delta": 0.0}),
    ]
    assert raw_errors(calls) == []


def test_trainers_states_and_plans(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # "x" is a path
    model, config, lora = load_model(folder).model, load_config(folder), LoRAAdapterConfig(2)
    trainer = AdapterTrainer(model, LoRAAdapter.for_model(model, lora), CONFIG)
    adapter, rows = trainer.adapter, [example()] * 3
    trainer.save_state("state")
    state = TrainingState.load("state")
    batch = next(trainer.batches(rows, 0))
    ids, logits = Tensor.zeros((1, 2), "u32"), Tensor.zeros((1, 2, 5), "f32")
    own = Trainer(8, 8, 1, LoRAAdapterConfig(2))
    calls: list[Call] = [
        ("AdapterTrainer", AdapterTrainer, {"model": model, "adapter": adapter, "config": CONFIG, "callbacks": ()}),
        ("run", lambda **given: trainer.run(**given).close(), {"train": rows, "valid": rows}),  # type: ignore[attr-defined]
        ("total_steps", trainer.total_steps, {"examples": rows}),
        ("batches", lambda **given: list(trainer.batches(**given)), {"examples": rows, "epoch": 0}),
        ("evaluate", trainer.evaluate, {"examples": rows}),
        ("train_step", trainer.train_step, {"group": [batch]}),
        ("save_state", trainer.save_state, {"path": "other", "notes": {}}),
        ("load_state", trainer.load_state, {"state": "state"}),
        ("resume", AdapterTrainer.resume, {"state": state, "model": model, "callbacks": (), "max_steps": 1}),
        ("TrainingState.load", TrainingState.load, {"path": "state"}),
        ("TrainingState.adapter", state.adapter, {"model": model}),
        ("TrainingState.check_adapter", state.check_adapter, {"adapter": adapter}),
        ("SaveState", SaveState, {"path": "s", "every": 1, "adapter": "a", "base_model": "b", "notes": {}}),
        ("SaveBest", SaveBest, {"adapter": "a", "base_model": "b"}),
        ("save_checkpoint", save_checkpoint, {"adapter": adapter, "path": "ck", "metadata": None}),
        ("load_checkpoint", load_checkpoint, {"adapter": adapter, "path": "ck"}),
        ("Trainer", Trainer, {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "training_config": None}),
        ("train", own.train, {"dataset": [(ids, ids)], "forward_fn": lambda ids: logits, "callbacks": ()}),
        (
            "execute",
            TrainingStep().execute,
            {
                "input_ids": ids,
                "target_ids": ids,
                "lora_adapter": own.lora_adapter(),
                "optimizer": own.optimizer(),
                "learning_rate": 0.1,
                "forward_fn": lambda ids: logits,
                "max_grad_norm": 1.0,
            },
        ),
        ("cross_entropy_loss", cross_entropy_loss, {"logits": logits, "targets": ids, "ignore_index": None}),
        ("longest_batch", longest_batch, {"training": CONFIG, "examples": rows, "pad_id": 0}),
        ("batch_of", batch_of, {"rows": 2, "length": 8, "trained": 3, "packed": True, "longest": 4}),
        (
            "plan_memory",
            plan_memory,
            {"model": config, "lora": lora, "training": CONFIG, "batch": batch, "dtype": "f32", "what_fits": False},
        ),
    ]
    with pytest.warns(UserWarning, match="the logits depend on no variable"):
        assert raw_errors(calls) == []


def test_metrics_and_data(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "the cat sat"}\n')
    (tmp_path / "log").write_text('{"step": 1, "loss": 2.0}\n')
    log, tokenizer, rows = MetricsLog("other"), load_model(folder).tokenizer, [example()] * 3
    read = training_data.read_rows("rows.jsonl")
    epoch = {"batch_size": 2, "seed": 0, "epoch": 0, "max_length": 32}
    whole = {"examples": rows, **epoch, "pad_id": 0, "pad_to": 16}
    calls: list[Call] = [
        ("MetricsLog", lambda **given: MetricsLog(**given).close(), {"path": "m", "append": True, "extra": dict}),
        ("write", log.write, {"record": {"step": 1}}),
        ("read_metrics", read_metrics, {"path": "log"}),
        ("loss_series", loss_series, {"records": [{"step": 1, "loss": 2.0}], "name": "loss"}),
        ("plot_loss", plot_loss, {"records": [{"step": 1, "loss": 2.0}], "path": "p.png"}),
        ("render_curve", render_curve, {"values": [1.0, 2.0], "width": 60, "height": 8}),
        ("split", training_data.split, {"examples": rows, "fraction": 0.2, "seed": 0}),
        ("batches", lambda **given: list(training_data.batches(**given)), whole),
        ("packed_batches", lambda **given: list(training_data.packed_batches(**given)), whole),
        ("batch_count", training_data.batch_count, {"examples": rows, "batch_size": 2}),
        ("packed_batch_count", training_data.packed_batch_count, {"examples": rows, **epoch}),
        ("collate", training_data.collate, {"examples": rows, "pad_id": 0, "max_length": 32, "pad_to": 16}),
        ("pack", training_data.pack, {"lengths": [3, 4], "capacity": 8}),
        ("read_rows", training_data.read_rows, {"path": "rows.jsonl"}),
        ("find_data", training_data.find_data, {"source": "rows.jsonl"}),
        ("packaged_dataset", training_data.packaged_dataset, {"name": "field-guide"}),
        (
            "tokenize",
            training_data.tokenize,
            {"rows": read, "tokenizer": tokenizer, "max_length": 99, "mask_prompt": True, "too_long": "skip"},
        ),
        ("summarize", training_data.summarize, {"examples": rows}),
        ("render_summary", training_data.render_summary, {"summary": training_data.summarize(rows)}),
        ("render_inspection", training_data.render_inspection_plain, {"example": rows[0], "tokenizer": tokenizer}),
        ("Example", Example, {"tokens": [3, 4], "targets": [False, True], "path": Path("a"), "line": 1}),
    ]
    assert raw_errors(calls) == []
    log.close()


def test_the_words() -> None:
    cases: list[tuple[Callable[[], object], type[Error], str]] = [
        (lambda: SaveState(None), ArgumentTypeError, "SaveState: got path None; takes a path"),  # type: ignore[arg-type]
        (lambda: EarlyStopping("x"), ArgumentTypeError, "EarlyStopping: got patience 'x'; takes an integer"),  # type: ignore[arg-type]
        (lambda: MetricsLog(3), ArgumentTypeError, "MetricsLog: got path 3; takes a path"),  # type: ignore[arg-type]
        (
            lambda: TrainingState.load(path=None),  # type: ignore[arg-type]
            ArgumentTypeError,
            "TrainingState.load: got path None; takes a path",
        ),
        (
            lambda: training_data.summarize([3]),  # type: ignore[list-item]
            ArgumentTypeError,
            "summarize: got examples a list; takes a list of Examples, as tokenize gives",
        ),
        (
            lambda: AdamWConfig(weight_decay=math.inf).validate(),
            TrainingError,
            "AdamWConfig: weight_decay is inf; takes at least 0, and finite",
        ),
        (
            lambda: TrainingConfig(packing="x").validate(),  # type: ignore[arg-type]
            TrainingError,
            "packing is 'x'; takes True or False",
        ),
        (
            lambda: TrainingConfig(gradient_checkpointing=3).validate(),  # type: ignore[arg-type]
            TrainingError,
            "gradient_checkpointing is 3; takes True or False",
        ),
        (lambda: LRScheduler().get_lr(0), TrainingError, "LRScheduler has no get_lr; takes LRScheduler.constant"),
        (lambda: Example([3], [True], Path("a"), 7), DataError, "a:7: 1 tokens and 1 targets; takes two or more"),
        (lambda: LRScheduler.constant(0.1).get_lr(-1), ArgumentTypeError, "got step -1; takes an integer from 0"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind) as raised:
            call()
        assert words in str(raised.value)


def test_a_closed_log_and_what_no_log_can_hold(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "log", extra=lambda: [3])  # type: ignore[arg-type, return-value]
    with pytest.raises(ArgumentTypeError, match="MetricsLog: got from extra a list; takes a dict"):
        log._more()
    with pytest.raises(
        ArgumentTypeError, match=r"MetricsLog\.write: record\['loss'\] is a Tensor; takes what JSON can"
    ):
        log.write({"loss": Tensor.zeros((), "f32")})
    log.close()
    with pytest.raises(Error, match="log: the log is closed"):
        log.write({"step": 1})
    (tmp_path / "log").write_text('{"step": 1}\n[3]\n')
    with pytest.raises(Error, match=r"log:2: holds a JSON list; takes an object"):
        read_metrics(tmp_path / "log")


def test_nothing_to_train_on_has_no_mean(folder: Path) -> None:
    model = load_model(folder).model
    trainer = AdapterTrainer(model, LoRAAdapter.for_model(model), CONFIG)
    silent = Example([3, 4, 5], [False] * 3, Path("made.jsonl"), 1)
    for call in (lambda: trainer.evaluate([silent]), lambda: trainer.evaluate([]), lambda: trainer.train_step([])):
        with pytest.raises(TrainingError.InvalidConfig, match=r"no token of \d batches is trained on"):
            call()


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (training_data.find_data, DataError.InvalidFile),
        (training_data.read_rows, DataError.InvalidFile),
        (TrainingState.load, CheckpointError.LoadFailed),
        (recognise.recognise, CheckpointError.LoadFailed),
        (read_metrics, CheckpointError.LoadFailed),
    ],
)
def test_names_too_long_for_a_file(call: Callable[[str], Any], kind: type[Error]) -> None:
    with pytest.raises(kind, match=r"\A.*aaa.*File name too long\Z"):
        call("a" * 5000)
