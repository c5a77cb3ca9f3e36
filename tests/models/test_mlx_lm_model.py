"""``MlxLmModel`` on a small module of the tests: everything that needs no mlx-lm."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import Device, LazyTensor, Tensor
from metal_candle.models.adaptable import AdaptableModel, PackableModel, WeighingModel
from metal_candle.models.mlx_lm import MlxLmModel
from metal_candle.models.mlx_lm.adapted import AdaptedLinear
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig
from metal_candle.training.config import TrainingConfig
from metal_candle.training.data.tokenizing import Example
from metal_candle.training.trainer import AdapterTrainer

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_network import IDS, VOCABULARY, Block, adapter_for, batch, is_adapted, network


@pytest.fixture
def model() -> MlxLmModel:
    return MlxLmModel(network())


def test_what_a_module_has(model: MlxLmModel) -> None:
    checked: AdaptableModel = model
    assert isinstance(model, WeighingModel)
    assert not isinstance(model, PackableModel)
    assert [place.path for place in checked.projections()] == [
        f"transformer.h.{i}.mixer.{name}" for i in range(2) for name in ("proj_in", "proj_out")
    ]
    assert [(place.layer, place.in_features, place.out_features) for place in model.projections()] == [
        (0, 32, 64),
        (0, 64, 32),
        (1, 32, 64),
        (1, 64, 32),
    ]
    assert (model.num_layers(), model.vocab_size(), str(model.dtype)) == (2, VOCABULARY, "f32")
    assert model.num_parameters() == 48 * 32 + 2 * (64 * 32 + 64 + 64 * 32 + 2 * 32 * 32)
    assert "after transformer" in model.explain()
    place = model.projections()[1]
    np.testing.assert_array_equal(place.dense_weight().numpy(), np.array(place.linear.weight))


def test_an_adapter_acts_as_its_merged_weights_do_and_the_base_stays(model: MlxLmModel) -> None:
    before = {name: np.array(value) for name, value in nn.utils.tree_flatten(model.module.parameters())}
    ids = Tensor.from_numpy(IDS)
    plain, adapter = model.forward(ids).numpy(), adapter_for(model)
    model.apply_adapter(adapter)
    adapted = model.forward(ids).numpy()
    merged = network()
    for place, own in zip(MlxLmModel(merged).projections(), model.projections()):
        layer = adapter.layer_at(own.path)
        assert layer is not None
        place.linear.weight = place.linear.weight + layer.delta_weight().mlx()
    # Sums in another order.
    np.testing.assert_allclose(adapted, np.array(merged(mx.array(IDS))), atol=2e-5)
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_array_equal(np.array(model.module(mx.array(IDS))), adapted)  # mlx's own call sees it too
    model.remove_adapter()
    np.testing.assert_array_equal(model.forward(ids).numpy(), plain)
    after = {name: np.array(value) for name, value in nn.utils.tree_flatten(model.module.parameters())}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_swapping_places_no_module_again(model: MlxLmModel) -> None:
    ids, one, other = Tensor.from_numpy(IDS), adapter_for(model, seed=1), adapter_for(model, "proj_in", seed=2)
    model.apply_adapter(one)
    first = model.forward(ids).numpy()
    seats = [place.holder[place.key] for place in model.projections()]
    model.apply_adapter(other)
    second = model.forward(ids).numpy()
    assert [place.holder[place.key] for place in model.projections()] == seats
    model.apply_adapter(one)
    np.testing.assert_array_equal(model.forward(ids).numpy(), first)
    model.remove_adapter()
    model.apply_adapter(other)
    np.testing.assert_array_equal(model.forward(ids).numpy(), second)
    assert not is_adapted(model.projections()[1])


def test_losses_and_gradients_agree_in_every_way_of_recording(model: MlxLmModel) -> None:
    adapter = adapter_for(model)
    model.apply_adapter(adapter)
    variables = adapter.trainable_variables()
    tensors = batch()

    def reference(*factors: mx.array) -> mx.array:
        pairs = iter(factors)
        seats = {path: (next(pairs), next(pairs)) for path in adapter.paths()}
        logits = _adapted_logits(model, seats)
        losses = nn.losses.cross_entropy(logits.reshape(-1, VOCABULARY)[tensors[1].mlx()], tensors[2].mlx())
        return (losses * tensors[3].mlx()).sum()

    (value,), expected = mx.vjp(reference, [var.mlx() for var in variables], [mx.array(1.0)])

    def weighted(*given: Any) -> tuple[Any, list[Any]]:
        loss = model.weighted_loss(*given)
        grads = loss.backward()
        return loss, [grads[var] for var in variables]

    def by_rows(*given: Any) -> tuple[Any, list[Any]]:
        loss = (model.row_losses(*given[:3]) * given[3]).sum_all()
        grads = loss.backward()
        return loss, [grads[var] for var in variables]

    lazy = [LazyTensor.from_tensor(tensor) for tensor in tensors]
    ways = [weighted(*tensors), by_rows(*tensors), weighted(*lazy), by_rows(*lazy)]
    ways += [mc.compile(way)(*tensors) for way in (weighted, by_rows)]
    for loss, gradients in ways:
        assert float(loss.eval() if isinstance(loss, LazyTensor) else loss) == pytest.approx(float(value), rel=1e-6)
        for gradient, want in zip(gradients, expected):
            np.testing.assert_allclose(gradient.numpy(), np.array(want), atol=1e-6)


def _adapted_logits(model: MlxLmModel, seats: dict[str, tuple[mx.array, mx.array]]) -> mx.array:
    """The network with low-rank updates spelled out, from its own weights."""
    body = model.module.transformer
    x = body.wte(mx.array(IDS))
    for i, block in enumerate(body.h):
        seen = mx.cumsum(x, axis=1) / mx.arange(1, 5)[:, None]

        def linear(name: str, at: mx.array, i: int = i, block: Any = block) -> mx.array:
            a, b = seats[f"transformer.h.{i}.mixer.{name}"]
            here = block.mixer[name]
            base = here.linear if isinstance(here, AdaptedLinear) else here
            return base(at) + 2.0 * (at @ a) @ b

        x = x + linear("proj_out", mx.tanh(linear("proj_in", seen))) + block.experts(x)
    return mx.tanh(body.wte.as_linear(x) / 5) * 5


def test_what_was_recorded_outlives_the_adapter(model: MlxLmModel) -> None:
    base = float(model.weighted_loss(*batch()))
    adapter = adapter_for(model)
    model.apply_adapter(adapter)
    adapted = float(model.weighted_loss(*batch()))
    recorded = model.weighted_loss(*[LazyTensor.from_tensor(tensor) for tensor in batch()])
    model.remove_adapter()
    assert float(recorded.eval()) == adapted != base
    assert not any(map(is_adapted, model.projections()))


def test_a_compiled_function_sees_which_adapter_acts(model: MlxLmModel) -> None:
    compiled, adapters = mc.compile(model.weighted_loss), [adapter_for(model, seed=1), adapter_for(model, seed=2)]
    found, traces = [], []
    for adapter in (None, *adapters) * 3:
        if adapter is None:
            model.remove_adapter()
        else:
            model.apply_adapter(adapter)
        found.append(float(compiled(*batch())))
        traces.append(compiled.traces)
        assert found[-1] == float(model.weighted_loss(*batch()))
    assert len(set(found)) == 3
    assert traces[5] == traces[8]  # each is replayed, once all that it depends on is known


def test_nothing_below_the_first_adapted_map_is_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    below = mx.custom_function(lambda x: x * 1)
    seen: list[str] = []

    @below.vjp
    def differentiated(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        seen.append("differentiated")
        return cotangent

    call = Block.__call__
    built = network()
    first = built.layers[0]
    monkeypatch.setattr(Block, "__call__", lambda self, x: below(call(self, x)) if self is first else call(self, x))
    model = MlxLmModel(built)
    for target, passed in (("h.1.mixer.proj_in", []), ("h.0.mixer.proj_out", ["differentiated"])):
        model.apply_adapter(LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, (target,))))
        assert len(model.weighted_loss(*batch()).backward()) == 2
        assert seen == passed


def test_a_head_that_looks_at_several_positions_gets_them_all() -> None:
    model = MlxLmModel(network(mixes=True))
    assert "all: transformer: " in model.explain()
    losses = model.row_losses(*batch()[:3]).numpy()
    logits = np.array(model.module(mx.array(IDS))).reshape(-1, VOCABULARY)[[0, 3, 6]].astype(np.float64)
    expected = np.log(np.exp(logits).sum(-1)) - logits[[0, 1, 2], [9, 10, 11]]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_packed_weights(model: MlxLmModel) -> None:
    dense = [place.dense_weight().numpy() for place in model.projections()]
    count = model.num_parameters()
    packed = network()
    nn.quantize(packed, group_size=32, bits=4, class_predicate=lambda path, m: isinstance(m, (nn.Linear, nn.Embedding)))
    model = MlxLmModel(packed)
    assert model.num_parameters() == count
    assert [place.in_features for place in model.projections()] == [32, 64, 32, 64]
    for place, weight in zip(model.projections(), dense):
        # Half a step of 4 bits over a group's range, which normal weights span.
        assert 0 < np.abs(place.dense_weight().numpy() - weight).max() < (weight.max() - weight.min()) / 15
    model.apply_adapter(adapter_for(model))
    grads = model.weighted_loss(*batch()).backward()
    assert len(grads) == 8


def test_halves_keep_factors_in_f32() -> None:
    built = network()
    built.set_dtype(mx.bfloat16)
    model = MlxLmModel(built)
    assert str(model.dtype) == "bf16"
    adapter = adapter_for(model)
    model.apply_adapter(adapter)
    assert str(model.forward(Tensor.from_numpy(IDS)).dtype) == "bf16"
    loss = model.weighted_loss(*batch())
    gradient = loss.backward()[adapter.trainable_variables()[0]]
    assert (str(loss.dtype), str(gradient.dtype)) == ("f32", "f32")
    whole = MlxLmModel(network())
    whole.apply_adapter(adapter)
    # bfloat16 has 8 bits, and a logit is a sum of tens of products.
    assert float(loss) == pytest.approx(float(whole.weighted_loss(*batch())), rel=0.05)


def test_dropout_is_drawn_from_our_generator(model: MlxLmModel) -> None:
    model.apply_adapter(adapter_for(model, dropout=0.5))
    compiled = mc.compile(model.weighted_loss)

    def draws() -> list[float]:
        Device.default().set_seed(7)
        return [float(compiled(*batch())) for _ in range(3)]

    first = draws()
    assert len(set(first)) == 3
    assert draws() == first


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, VOCABULARY, size).tolist() for size in (5, 9, 7, 6)]
    return [Example(row, [False, *[True] * (len(row) - 1)], Path("rows"), i) for i, row in enumerate(rows)]


def trainer_of(dropout: float) -> AdapterTrainer:
    model = MlxLmModel(network())
    Device.default().set_seed(3)
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, dropout, ("proj_in", "proj_out")))
    return AdapterTrainer(model, adapter, TrainingConfig(num_epochs=6, batch_size=2))


def test_the_trainer_trains_it_and_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    trainer = trainer_of(0.1)
    losses = [event.loss for event in trainer.run(examples())]
    assert len(losses) == 12
    assert np.mean(losses[-4:]) < np.mean(losses[:4])

    stopped = trainer_of(0.1)
    for event in stopped.run(examples()):
        if event.step == 5:
            stopped.save_state(tmp_path / "state")
            break
    Device.default().set_seed(99)
    resumed = AdapterTrainer.resume(tmp_path / "state", MlxLmModel(network()))
    assert [event.loss for event in resumed.run(examples())] == losses[5:]
    for mine, theirs in zip(resumed.adapter.trainable_variables(), trainer.adapter.trainable_variables()):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert [event.loss for event in trainer_of(0.0).run(examples())] != losses


def test_threads_do_not_see_each_others_factors(model: MlxLmModel) -> None:
    adapter = adapter_for(model)
    model.apply_adapter(adapter)
    expected = model.forward(Tensor.from_numpy(IDS)).numpy()
    loss = float(model.weighted_loss(*batch()))

    def work(i: int) -> bool:
        if i % 2:
            return np.array_equal(model.forward(Tensor.from_numpy(IDS)).numpy(), expected)
        value = model.weighted_loss(*batch())
        return float(value) == loss and len(value.backward()) == 8

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))
