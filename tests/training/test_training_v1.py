"""Trainer and TrainingStep of v1: against steps by hand, warnings, failures, callbacks; the adapter's tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from metal_candle import ArgumentTypeError, LazyTensor, Tensor, TrainingError, Var, nn
from metal_candle.training import (
    AdamW,
    AdamWConfig,
    LoRAAdapter,
    LoRAAdapterConfig,
    LoRAConfig,
    LoRALayer,
    LRScheduler,
    ParamsAdamW,
    StepMetrics,
    TargetModule,
    Trainer,
    TrainingConfig,
    TrainingStep,
    cross_entropy_loss,
)
from metal_candle.training.callbacks import TrainingCallback

import numpy as np
import pytest

HIDDEN, WORDS = 8, 11
RNG = np.random.default_rng(3)
TABLE = RNG.standard_normal((WORDS, HIDDEN)).astype(np.float32)


def pairs(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(5)
    return [(Tensor(rng.integers(0, WORDS, (2, 4))), Tensor(rng.integers(0, WORDS, (2, 4)))) for _ in range(count)]


def forward_of(adapter: LoRAAdapter) -> Callable[[Tensor], Tensor]:
    """A model of one adapted identity: logits are the table's products with what the adapter makes of the rows."""
    table = Tensor(TABLE)

    def forward(ids: Tensor) -> Tensor:
        rows = table.embedding(ids)
        delta = adapter.forward(0, TargetModule.QProj, rows)
        assert delta is not None
        return (rows + delta).broadcast_matmul(table.t())

    return forward


def trainer(**settings: Any) -> Trainer:
    values: dict[str, Any] = {"num_epochs": 4, "lr_scheduler": LRScheduler.constant(0.02), **settings}
    made = Trainer(HIDDEN, 16, 1, LoRAAdapterConfig(rank=2, init="normal"), TrainingConfig(**values))
    rng = np.random.default_rng(9)
    for var in made.lora_adapter().trainable_variables():
        var.set(Tensor(0.3 * rng.standard_normal(tuple(var.shape)).astype(np.float32)))
    return made


def by_hand(adapter: LoRAAdapter, rates: list[float], limit: float | None) -> list[float]:
    """The same run, step by step."""
    optimizer = AdamW(AdamWConfig(weight_decay=0.1), adapter.trainable_variables())
    forward, data, losses = forward_of(adapter), pairs(), []
    for i, rate in enumerate(rates):
        ids, targets = data[i % len(data)]
        optimizer.set_lr(rate)
        loss = cross_entropy_loss(forward(ids), targets)
        optimizer.backward_step(loss, limit)
        losses.append(loss.to_scalar())
    return losses


@pytest.mark.parametrize("limit", [None, 0.05])
@pytest.mark.parametrize("optimizer", [AdamWConfig(weight_decay=0.1), ParamsAdamW(lr=1e-4, weight_decay=0.1)])
def test_a_run_is_its_steps(limit: float | None, optimizer: AdamWConfig | ParamsAdamW) -> None:
    schedule = LRScheduler.warmup_cosine(3, 12, 0.05, 0.0)
    run = trainer(lr_scheduler=schedule, optimizer_config=optimizer, max_grad_norm=limit)
    metrics = run.train(pairs(), forward_of(run.lora_adapter()))
    again = trainer()
    rates = [schedule.get_lr(step) for step in range(12)]
    assert [each.learning_rate for each in metrics] == rates
    assert metrics[0].learning_rate == 0.0  # the first update of a warm-up does nothing
    assert [each.step for each in metrics] == list(range(1, 13))
    assert [each.loss for each in metrics] == by_hand(again.lora_adapter(), rates, limit)
    assert metrics[-1].loss < metrics[0].loss
    assert run.global_step() == run.optimizer().step_count() == 12
    for mine, other in zip(run.lora_adapter().trainable_variables(), again.lora_adapter().trainable_variables()):
        assert np.array_equal(mine.numpy(), other.numpy())


def test_the_global_step_goes_on_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(num_epochs=1)
    assert run.train([], forward_of(run.lora_adapter())) == []
    run.train(pairs(2), forward_of(run.lora_adapter()))
    assert run.train(pairs(2), forward_of(run.lora_adapter()))[0].step == 3
    assert capsys.readouterr() == ("", "")


def test_targets_that_are_marked_do_not_count() -> None:
    run = trainer(num_epochs=1)
    ids, targets = pairs(1)[0]
    marked = targets.numpy().copy()
    marked[:, :2] = -100
    for each in (marked, np.where(marked < 0, 2**32 - 1, marked).astype(np.uint32)):
        (metrics,) = run.train([(ids, Tensor(each))], forward_of(run.lora_adapter()))
        assert (metrics.tokens, metrics.trained_tokens) == (8, 4)


def test_a_callback_ends_the_run() -> None:
    class Stop(TrainingCallback):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def on_start(self, trainer: Any, total_steps: int) -> None:
            self.heard.append(total_steps)

        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool:
            self.heard.append((trainer.step, metrics.step))
            return metrics.step < 2

        def on_end(self, trainer: Any, error: BaseException | None) -> None:
            self.heard.append(error)

    told, seen = Stop(), list[int]()
    run = trainer()
    assert len(run.train(pairs(), forward_of(run.lora_adapter()), [told, lambda each: seen.append(each.step)])) == 2
    assert told.heard == [12, (1, 1), (2, 2), None]
    assert seen == [1, 2]
    assert len(run.train(pairs(), forward_of(run.lora_adapter()), [lambda each: each.step < 5])) == 3
    with pytest.raises(ArgumentTypeError, match="callbacks: got 3; takes TrainingCallback objects and functions"):
        run.train(pairs(), forward_of(run.lora_adapter()), [3])  # type: ignore[list-item]


def test_max_steps_and_a_generator() -> None:
    run = trainer(max_steps=5)
    assert len(run.train(pairs(), forward_of(run.lora_adapter()))) == 5
    with pytest.raises(TrainingError.InvalidConfig, match="the data set is a list_iterator, which one epoch uses up"):
        run.train(iter(pairs()), forward_of(run.lora_adapter()))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(bad: str) -> None:
    run = trainer(num_epochs=1)
    forward = forward_of(run.lora_adapter())
    run.train(pairs(), forward)
    before = [var.numpy().copy() for var in run.lora_adapter().trainable_variables()]

    def broken(ids: Tensor) -> Tensor:
        logits = forward(ids)
        if bad == "loss":
            return logits * float("nan")
        return logits + (logits - logits.detach()).abs().sqrt()  # 0, with an infinite slope

    kind, text = TrainingError.Failed, "training failed: loss is nan"
    if bad == "gradient":
        kind, text = TrainingError.Gradient, "gradient error: gradient norm is (nan|inf)"
    with pytest.raises(kind, match=f"^{text} at step 4; the adapter keeps the weights of step 3"):
        run.train(pairs(), broken)
    assert run.global_step() == 3
    assert all(np.array_equal(var.numpy(), b) for var, b in zip(run.lora_adapter().trainable_variables(), before))


def test_logits_without_a_variable_warn_once_and_change_nothing() -> None:
    run, step = trainer(), TrainingStep()
    before = [var.numpy().copy() for var in run.lora_adapter().trainable_variables()]
    ids, targets = pairs(1)[0]
    other = Var.ones((2, 4, WORDS), "f32")
    with pytest.warns(UserWarning, match="the logits depend on no variable of the adapter, so nothing is updated"):
        metrics = step.execute(ids, targets, run.lora_adapter(), run.optimizer(), 0.1, lambda _: other * 1.0)
    assert metrics.loss == pytest.approx(np.log(WORDS), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.execute(ids, targets, run.lora_adapter(), run.optimizer(), 0.1, lambda _: Tensor.ones((2, 4, WORDS)))
    assert step.step() == 2
    step.reset()
    assert step.step() == 0
    assert all(np.array_equal(var.numpy(), b) for var, b in zip(run.lora_adapter().trainable_variables(), before))
    assert np.array_equal(other.numpy(), np.ones((2, 4, WORDS)))
    with pytest.raises(ArgumentTypeError, match="forward_fn gave None; takes a tensor of logits"):
        step.execute(ids, targets, run.lora_adapter(), run.optimizer(), 0.1, lambda _: None)


def test_a_lazy_forward_function_gives_the_same_run() -> None:
    eager, lazy = trainer(), trainer()
    wanted = eager.train(pairs(), forward_of(eager.lora_adapter()))

    def lifted(ids: Tensor) -> Any:
        rows = LazyTensor.from_tensor(Tensor(TABLE).embedding(ids))
        delta = lazy.lora_adapter().forward(0, TargetModule.QProj, rows)
        return (rows + delta).broadcast_matmul(LazyTensor.from_tensor(Tensor(TABLE)).t())

    found = lazy.train(pairs(), lifted)
    np.testing.assert_allclose([m.loss for m in found], [m.loss for m in wanted], rtol=1e-5)


def test_other_arguments_are_refused() -> None:
    run = trainer()
    ids, targets = pairs(1)[0]
    with pytest.raises(ArgumentTypeError, match="train: got a Tensor in the data set; takes pairs"):
        run.train([ids], forward_of(run.lora_adapter()))  # type: ignore[list-item]
    other = nn.AdamW(run.lora_adapter().trainable_variables(), 0.1)
    with pytest.raises(ArgumentTypeError, match=r"got optimizer an AdamW; takes a metal_candle\.training\.AdamW"):
        TrainingStep().execute(ids, targets, run.lora_adapter(), other, 0.1, len)  # type: ignore[arg-type]


def test_dropout_acts_in_the_run_only() -> None:
    run = Trainer(HIDDEN, 16, 1, LoRAAdapterConfig(rank=2, dropout=0.5), TrainingConfig(num_epochs=1))
    run.lora_adapter().set_training(False)
    modes: list[bool] = []

    def forward(ids: Tensor) -> Tensor:
        modes.append(run.lora_adapter().layers()[0][1].is_training())
        return forward_of(run.lora_adapter())(ids)

    run.train(pairs(1), forward)
    assert modes == [True]
    assert not run.lora_adapter().layers()[0][1].is_training()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lr_scheduler": LRScheduler.constant(0.0)}, "learning rate: lr is 0.0"),
        ({"lr_scheduler": LRScheduler.cosine(0, 1.0, 0.0)}, "total_steps is 0"),
        ({"optimizer_config": AdamWConfig(beta1=2.0)}, "beta1 is 2.0"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
    ],
)
def test_the_trainer_validates(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(TrainingError.InvalidConfig, match=text):
        Trainer(HIDDEN, 16, 1, LoRAAdapterConfig(rank=2), TrainingConfig(**settings))


@pytest.mark.parametrize(
    "setting",
    [
        {"packing": True},
        {"gradient_checkpointing": True},
        {"accumulation_steps": 2},
        {"batch_size": 8},
        {"max_length": 64},
        {"eval_every": 5},
        {"cache_limit": 0},
        {"seed": 1},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_that_the_trainer_of_v1_has_no_use_for_is_refused(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(TrainingError.InvalidConfig, match=rf"Trainer has no use for {name}; AdapterTrainer has"):
        trainer(**setting)


def test_the_defaults_are_the_crates() -> None:
    config = TrainingConfig()
    assert (config.num_epochs, config.max_grad_norm) == (3, 1.0)
    assert config.lr_scheduler == LRScheduler.Constant(lr=1e-4)
    assert config.optimizer_config == AdamWConfig()
    assert LRScheduler.WarmupCosine(warmup_steps=1, total_steps=2, max_lr=1.0, min_lr=0.0) == LRScheduler.warmup_cosine(
        1, 2, 1.0, 0.0
    )
    assert LRScheduler.constant(1.0) != LRScheduler.constant(2.0)
    assert isinstance(LRScheduler.linear(1, 1.0), LRScheduler.Linear)


def test_the_adapters_layers_can_be_gone_through_twice() -> None:
    adapter = LoRAAdapter(8, 16, 2, LoRAAdapterConfig(rank=2, target_modules=list(TargetModule)))
    layers = adapter.layers()
    keys = [f"layers.{i}.{target.name()}" for i in range(2) for target in TargetModule]
    assert [key for key, _ in layers] == [key for key, _ in layers] == keys
    for (_, layer), target in zip(layers, [*TargetModule, *TargetModule]):
        sizes = {"gate_proj": (8, 16), "up_proj": (8, 16), "down_proj": (16, 8)}.get(target.name(), (8, 8))
        assert (layer.in_features(), layer.out_features()) == sizes
    assert TargetModule.from_name("o_proj") is TargetModule.OProj
    assert TargetModule.from_name("lm_head") is None


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_half_input_gives_a_half_delta(dtype: str, dropout: float) -> None:
    layer = LoRALayer(8, 8, LoRAConfig(rank=2, dropout=dropout))
    layer.lora_b().set(Tensor(np.ones((2, 8), np.float32)))
    delta = layer.forward(Tensor.ones((3, 8), dtype=dtype))
    assert str(delta.dtype) == dtype
    assert layer.forward(LazyTensor.from_tensor(Tensor.ones((3, 8), dtype=dtype))).dtype is delta.dtype
    with pytest.raises(ArgumentTypeError, match="LoRALayer: got an ndarray; takes a tensor"):
        layer.forward(np.ones((3, 8)))


@pytest.mark.parametrize(
    "make", [lambda config: LoRAAdapter(8, 16, 1, config), lambda config: Trainer(8, 16, 1, config)]
)
def test_an_adapters_configuration_is_not_a_layers(make: Callable[[Any], Any]) -> None:
    with pytest.raises(TrainingError.InvalidLoRAConfig, match="takes a LoRAAdapterConfig, which has targets"):
        make(LoRAConfig(rank=2))
