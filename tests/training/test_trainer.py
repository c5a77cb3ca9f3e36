"""The trainer against a plain MLX loop; learning by heart; what happens when the loss is not finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from metal_candle import ArgumentTypeError, Device, Tensor, TrainingError
from metal_candle.models import load_model
from metal_candle.nn import ParamsAdamW
from metal_candle.training import (
    AdapterTrainer,
    EvalMetrics,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    StepMetrics,
    TargetModule,
    TrainingConfig,
)
from metal_candle.training.data import Example, collate

import mlx.core as mx
import numpy as np
import plain_llama
import pytest

ALL = tuple(TargetModule)
SCALE, RATE = 2.0, 1e-2


def examples(count: int, length: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        tokens = rng.integers(3, 64, length).tolist()
        rows.append(Example(tokens, [j >= length // 3 for j in range(length)], Path("made.jsonl"), i + 1))
    return rows


def make(folder: Path, targets: tuple[TargetModule, ...] = ALL, **settings: object) -> AdapterTrainer:
    Device.default().set_seed(7)
    model = load_model(folder).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 4 * SCALE, 0.0, targets))
    values = {"lr_scheduler": LRScheduler.constant(RATE), "optimizer_config": ParamsAdamW(lr=RATE)}
    return AdapterTrainer(model, adapter, TrainingConfig(**{**values, **settings}), pad_id=2)  # type: ignore[arg-type]


def factors(adapter: LoRAAdapter) -> dict[str, mx.array]:
    found = {}
    for key, layer in adapter.layers():
        _, index, name = key.split(".")
        target = TargetModule.from_name(name)
        assert target is not None
        path = f"model.layers.{index}.{target.parent}.{name}"
        found[f"{path}.a"], found[f"{path}.b"] = layer.lora_a().mlx(), layer.lora_b().mlx()
    return found


@pytest.mark.parametrize("targets", [ALL, (TargetModule.QProj, TargetModule.VProj), (TargetModule.DownProj,)])
def test_twenty_steps_equal_a_plain_loop(
    tiny_model_dir: Callable[..., Path], targets: tuple[TargetModule, ...]
) -> None:
    trainer = make(tiny_model_dir(), targets, max_grad_norm=None)
    weights = {name: tensor.mlx() for name, tensor in trainer.model.weights().items()}
    lora = factors(trainer.adapter)
    m = v = {name: mx.zeros_like(value) for name, value in lora.items()}
    for step in range(1, 21):
        batch = collate(examples(3, 9 + step % 5, seed=step), 2, 64)
        inputs, wanted, mask = map(mx.array, (batch.inputs, batch.targets, batch.mask))

        arguments = {"config": trainer.model.config, "weights": weights, "scale": SCALE, "ids": inputs}
        loss = partial(plain_llama.mean_loss, targets=wanted, mask=mask, **arguments)
        expected, grads = mx.value_and_grad(loss)(lora)
        lora, m, v = plain_llama.adamw(lora, grads, m, v, step, RATE, 0.01)
        mx.eval(lora, m, v)
        # float32 through two different orders of summation, on a loss of about 4
        assert trainer.train_step([batch]).loss == pytest.approx(float(expected), abs=2e-5)
    for name, value in factors(trainer.adapter).items():
        # Adam divides by the gradient's size, so rounding counts where a gradient is near 0: 2 % of one step
        np.testing.assert_allclose(np.array(value), np.array(lora[name]), atol=0.02 * RATE, err_msg=name)


def test_clipping_scales_the_gradient_to_the_norm(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir()
    batch = collate(examples(2, 12), 2, 64)
    free, clipped = make(folder, max_grad_norm=None), make(folder, max_grad_norm=1e-3)
    norm = free.train_step([batch]).grad_norm
    assert clipped.train_step([batch]).grad_norm == pytest.approx(norm, rel=1e-6)  # the norm before clipping
    assert norm > 1e-3
    # The first moment is (1 - beta1) times the clipped gradient.
    moments = [m.mlx() for name, m in clipped.optimizer.state().items() if name.endswith(".m")]
    total = float(mx.sqrt(sum((value**2).sum() for value in moments)))
    assert total == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_accumulated_batches_equal_one_large_batch(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir()
    rows = examples(6, 12)
    whole, parts = make(folder), make(folder)
    for _ in range(3):
        a = whole.train_step([collate(rows, 2, 64)])
        b = parts.train_step([collate(rows[:1], 2, 64), collate(rows[1:], 2, 64)])
        assert b.loss == pytest.approx(a.loss, abs=2e-5)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-4)
        assert b.trained_tokens == a.trained_tokens
    for name, value in factors(parts.adapter).items():
        np.testing.assert_allclose(np.array(value), np.array(factors(whole.adapter)[name]), atol=0.02 * RATE)


def test_padding_changes_nothing(tiny_model_dir: Callable[..., Path]) -> None:
    trainer = make(tiny_model_dir())
    rows = examples(1, 12) + examples(1, 30, seed=3)
    together = trainer.evaluate(rows)
    apart = [trainer.evaluate([row]) for row in rows]
    mean = sum(e.loss * e.trained_tokens for e in apart) / sum(e.trained_tokens for e in apart)
    assert together.loss == pytest.approx(mean, abs=2e-5)


def test_a_two_layer_model_learns_by_heart(tiny_model_dir: Callable[..., Path]) -> None:
    trainer = make(
        tiny_model_dir(hidden_size=64, head_dim=16),
        num_epochs=120,
        batch_size=2,
        lr_scheduler=LRScheduler.cosine(240, RATE, RATE / 100),
    )
    rows = examples(4, 16)
    events = list(trainer.run(rows, rows))
    measured = [event for event in events if isinstance(event, EvalMetrics)]
    assert measured[0].loss > 3.5  # 64 tokens at random: log 64 = 4.16
    # The head is frozen and its rows are short (norm 0.8), so that the loss itself cannot come near 0.
    assert measured[-1].loss < 0.25
    for row in rows:
        best = trainer.model(Tensor([row.tokens])).numpy()[0].argmax(axis=-1)
        assert all(best[i - 1] == row.tokens[i] for i in range(1, len(row.tokens)) if row.targets[i])
    assert [event.step for event in events if isinstance(event, StepMetrics)] == list(range(1, 241))


def test_frozen_weights_stay_and_get_no_gradient(tiny_model_dir: Callable[..., Path]) -> None:
    trainer = make(tiny_model_dir())
    before = {name: tensor.numpy().copy() for name, tensor in trainer.model.weights().items()}
    trainer.train_step([collate(examples(2, 12), 2, 64)])
    for name, tensor in trainer.model.weights().items():
        assert np.array_equal(tensor.numpy(), before[name]), name
    loss = trainer.model(Tensor([[3, 4, 5]])).sqr().mean_all()
    grads = loss.backward()
    assert len(grads) == len(trainer.adapter.trainable_variables())
    assert all(grads.get(weight) is None for weight in trainer.model.weights().values())


def test_backward_stops_below_the_first_adapted_layer(tiny_model_dir: Callable[..., Path]) -> None:
    model = load_model(tiny_model_dir()).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(2, 4.0, 0.0, (TargetModule.DownProj,)))
    model.apply_adapter(adapter)
    model.layers[0].mlp.down_proj.adapter = None
    ids = Tensor([[3, 4, 5]])
    assert not model.layers[0].forward(model.embed_tokens(ids)).track_op()
    assert model(ids).track_op()


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(tiny_model_dir: Callable[..., Path]) -> None:
    trainer = make(tiny_model_dir())
    batch = collate(examples(2, 12), 2, 64)
    trainer.train_step([batch])
    good = {name: np.array(value) for name, value in factors(trainer.adapter).items()}
    moments = {name: tensor.numpy() for name, tensor in trainer.optimizer.state().items()}
    broken = trainer.model.norm.weight()
    trainer.model.norm._weight = Tensor.full(float("nan"), broken.shape)
    # Of another shape, so that the step is traced anew: a plan holds the frozen weights it was traced with.
    other = collate(examples(2, 40), 2, 64)
    with pytest.raises(TrainingError.Failed, match="loss is nan at step 2; the adapter keeps the weights of step 1"):
        trainer.train_step([other])
    for name, value in factors(trainer.adapter).items():
        assert np.array_equal(np.array(value), good[name]), name
    for name, tensor in trainer.optimizer.state().items():
        assert np.array_equal(tensor.numpy(), moments[name]), name


def test_dropout_acts_in_training_only_and_is_repeatable(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir()
    losses = []
    for _ in range(2):
        Device.default().set_seed(3)
        model = load_model(folder).model
        adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.5, ALL))
        for _, layer in adapter.layers():
            layer.lora_b().set(Tensor.randn(0.0, 0.3, layer.lora_b().shape))
        trainer = AdapterTrainer(model, adapter, TrainingConfig(), pad_id=2)
        held_out = trainer.evaluate(examples(2, 12)).loss
        assert trainer.evaluate(examples(2, 12)).loss == held_out
        batch = collate(examples(2, 12), 2, 64)
        losses.append([trainer.train_step([batch]).loss for _ in range(3)])
        assert abs(losses[-1][0] - held_out) > 1e-4
    assert losses[0] == losses[1]


def test_steps_are_traced_once_per_shape(tiny_model_dir: Callable[..., Path]) -> None:
    trainer = make(tiny_model_dir())
    for length in (12, 12, 14, 30, 12):
        trainer.train_step([collate(examples(2, length), 2, 64)])
    assert trainer.update._at_once.traces == 2  # 12 and 14 both become 16 columns, 30 becomes 32


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0; takes at least 1"),
        ({"max_steps": 0}, "max_steps is 0; takes at least 1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; takes more than 0"),
        ({"lr_scheduler": LRScheduler.constant(0.0)}, "lr is 0.0; takes more than 0"),
        ({"optimizer_config": ParamsAdamW(beta1=1.0)}, "beta1 is 1.0; takes 0 <= it < 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(TrainingError.InvalidConfig, match=text):
        TrainingConfig(**settings).validate()  # type: ignore[arg-type]


@pytest.mark.parametrize("before", [False, True])
def test_gradient_checkpointing_is_the_trainers_alone(tiny_model_dir: Callable[..., Path], before: bool) -> None:
    """The model is as it was, between the steps, after them and after an error in one."""
    model = load_model(tiny_model_dir(num_hidden_layers=1)).model
    model.gradient_checkpointing(before)
    recorded = []

    def row_losses(*given: Any) -> Any:
        recorded.append(model._recomputes)
        if len(recorded) > 2:
            raise ValueError("mine")
        return type(model).row_losses(model, *given)

    model.row_losses = row_losses
    trainer = AdapterTrainer(
        model, LoRAAdapter.for_model(model), TrainingConfig(gradient_checkpointing=True, num_epochs=1)
    )
    assert model._recomputes is before
    for _ in trainer.run(examples(5, 12), examples(2, 12)):
        assert model._recomputes is before
        if len(recorded) == 2:  # an evaluation, which has no gradient, and a step
            break
    assert recorded == [before, True]
    with pytest.raises(ValueError, match="mine"):
        trainer.train_step([collate(examples(2, 40), 2, 64)])
    assert recorded == [before, True, True]
    assert model._recomputes is before


def test_what_is_no_model_adapter_configuration_or_token_is_named(tiny_model_dir: Callable[..., Path]) -> None:
    model = load_model(tiny_model_dir(num_hidden_layers=1)).model
    adapter, config = LoRAAdapter.for_model(model), TrainingConfig()
    wrong: list[tuple[tuple[Any, ...], str]] = [
        (("smollm2", adapter, config), "AdapterTrainer: got model 'smollm2'; takes one of metal_candle.models"),
        ((model, None, config), "got adapter None; takes a LoRAAdapter"),
        ((model, adapter, 3), "got config 3; takes a TrainingConfig"),
    ]
    for arguments, words in wrong:
        with pytest.raises(ArgumentTypeError, match=words):
            AdapterTrainer(*arguments)
    for pad in (None, -1, 64):
        with pytest.raises(TrainingError.InvalidConfig, match=f"pad_id is {pad}; takes a token id below 64"):
            AdapterTrainer(model, adapter, config, pad)  # type: ignore[arg-type]


def test_rows_longer_than_the_models_context_are_warned_of(tiny_model_dir: Callable[..., Path]) -> None:
    trainer = make(tiny_model_dir(max_position_embeddings=16), max_steps=1)
    with pytest.warns(UserWarning, match=r"^run: the longest row has 23 tokens, the model's context is 16$") as found:
        events = list(trainer.run([*examples(2, 9), *examples(1, 24)], None))
    assert found[0].filename == __file__
    assert [type(event) for event in events] == [StepMetrics]
    list(make(tiny_model_dir(max_position_embeddings=16), max_steps=1).run(examples(2, 17)))  # no warning


def test_an_adapter_of_nothing_is_not_trained(tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(TrainingError.InvalidConfig, match="the adapter adapts nothing; give it target_modules"):
        make(tiny_model_dir(), targets=())
