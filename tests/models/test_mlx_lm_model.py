"""``MlxLmModel`` on a small module written here: everything that needs no mlx-lm."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import Device, LazyTensor, Tensor
from metal_candle.error import ArgumentTypeError, Error, InvalidIndexError, ModelError, TrainingError
from metal_candle.models.adaptable import AdaptableModel, PackableModel, WeighingModel
from metal_candle.models.mlx_lm import MlxLmModel
from metal_candle.models.mlx_lm.adapted import AdaptedLinear, MlxPlace
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, LoRAConfig, LoRALayer
from metal_candle.training.config import TrainingConfig
from metal_candle.training.data.tokenizing import Example
from metal_candle.training.trainer import AdapterTrainer

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

VOCABULARY, HIDDEN = 48, 32


class Experts(nn.Module):
    """Stacked weights, as experts have them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.random.normal((2, HIDDEN, HIDDEN)) * 0.1

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight[0] + x @ self.weight[1]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = {"proj_in": nn.Linear(HIDDEN, 64), "proj_out": nn.Linear(64, HIDDEN, bias=False)}
        self.experts = Experts()
        self.drop = nn.Dropout(0.5)

    def __call__(self, x: mx.array) -> mx.array:
        seen = mx.cumsum(x, axis=1) / mx.arange(1, x.shape[1] + 1)[:, None]
        hidden = mx.tanh(self.mixer["proj_in"](seen))
        return x + self.drop(self.mixer["proj_out"](hidden)) + self.experts(x)


class Body(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, HIDDEN)
        self.h = [Block() for _ in range(blocks)]

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return x


class Network(nn.Module):
    """A causal model with a tied head, capped logits, and odd names."""

    def __init__(self, blocks: int = 2, mixes: bool = False) -> None:
        super().__init__()
        self.transformer = Body(blocks)
        self._mixes = mixes

    def __call__(self, ids: mx.array) -> mx.array:
        logits = mx.tanh(self.transformer.wte.as_linear(self.transformer(ids)) / 5) * 5
        return mx.cumsum(logits, axis=1) if self._mixes else logits

    @property
    def layers(self) -> list[Block]:
        return self.transformer.h


def network(seed: int = 0, **arguments: Any) -> Network:
    mx.random.seed(seed)
    built = Network(**arguments)
    mx.eval(built.parameters())
    return built


def adapter_for(model: MlxLmModel, *targets: str, dropout: float = 0.0, seed: int = 0) -> LoRAAdapter:
    Device.default().set_seed(seed)
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, dropout, targets or ("all-linear",)))
    rng = np.random.default_rng(seed)
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.from_numpy(rng.normal(0, 0.3, layer.lora_b().shape).astype(np.float32)))
    return adapter


def is_adapted(place: MlxPlace) -> bool:
    return isinstance(place.holder[place.key], AdaptedLinear)


IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint32)


def batch() -> tuple[Tensor, ...]:
    rows, targets, weights = np.array([0, 3, 6], np.int32), np.array([9, 10, 11], np.int32), np.float32([0.5, 0.2, 0.3])
    return tuple(Tensor.from_numpy(array) for array in (IDS, rows, targets, weights))


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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: MlxLmModel(model.module, None, 3), "MlxLmModel: got config 3; takes the object of a config"),
        (lambda model: model.apply_adapter(None), "apply_adapter: got None; takes an adapter"),
        (lambda model: model.forward([[1]]), "MlxLmModel: got ids a list; takes a tensor"),
        (lambda model: model.row_losses(3, 3, 3), "MlxLmModel: got ids 3; takes a tensor"),
        (lambda model: model.refused_target(3), "refused_target: got 3; takes a name"),
        (lambda model: model.next_logits(3, []), "next_logits: got ids 3; takes a list of ids"),
        (lambda model: model.next_logits(["x"], []), "next_logits: got an id 'x'; takes an integer"),
        (lambda model: model.next_logits([1], None), "next_logits: got caches None; takes a list of caches"),
        (lambda model: model.next_logits([1], [3]), "next_logits: got caches a list; takes a list of caches"),
    ],
)
def test_wrong_arguments_are_told_in_words(model: MlxLmModel, call: Callable[[Any], object], words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        call(model)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("experts", r"transformer\.h\.0\.experts is a Experts, which cannot be adapted"),
        ("wte", r"transformer\.wte is a Embedding, which cannot be adapted"),
        ("q_proj", "no module of the model is 'q_proj'; it has proj_in, proj_out"),
    ],
)
def test_targets_that_are_refused(model: MlxLmModel, target: str, words: str) -> None:
    with pytest.raises(TrainingError.InvalidLoRAConfig, match=words):
        LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, (target,)))


def test_a_name_that_experts_share_is_refused_with_the_longer_one() -> None:
    built = network()
    built.layers[1].mixer["experts"] = nn.Linear(HIDDEN, HIDDEN)
    model = MlxLmModel(built)
    assert model.refused_target("experts") == (
        "transformer.h.0.experts is a Experts, which cannot be adapted; mixer.experts can be"
    )
    assert model.refused_target("mixer.experts") is None
    assert (
        "mixer.experts"
        in LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, ("all-linear",))).config().target_names()
    )


def test_two_models_of_one_module_do_not_share_an_adapter() -> None:
    """Both would act in the same maps: the second would compute with the first one's factors, and train nothing."""
    built = network()
    first, second = MlxLmModel(built), MlxLmModel(built)
    ids = Tensor.from_numpy(IDS)
    base, adapter = first.forward(ids).numpy(), adapter_for(first)
    first.apply_adapter(adapter)
    another = "proj_in: an adapter acts here that another MlxLmModel of the same module has applied"
    for refused in (
        lambda: MlxLmModel(built),
        lambda: second.apply_adapter(adapter),
        lambda: second.forward(ids),
        lambda: second.weighted_loss(*batch()),
    ):
        with pytest.raises(ModelError.InvalidConfig, match=another):
            refused()
    second.remove_adapter()  # its own, of which there is none
    assert not second.has_adapter()
    assert is_adapted(first.projections()[0])
    first.remove_adapter()
    np.testing.assert_array_equal(second.forward(ids).numpy(), base)
    second.apply_adapter(adapter)
    assert not np.array_equal(second.forward(ids).numpy(), base)


def test_other_mistakes_are_named(model: MlxLmModel) -> None:
    with pytest.raises(ModelError.InvalidConfig, match="got list; takes a model of mlx-lm"):
        MlxLmModel([1])
    with pytest.raises(ModelError.InvalidConfig, match="Linear: got a module without blocks"):
        MlxLmModel(nn.Linear(2, 2))
    small = MlxLmModel(network(blocks=1))
    with pytest.raises(ModelError.InvalidConfig, match="the adapter spans 1 layers, the model has 2"):
        model.apply_adapter(adapter_for(small))
    path = model.projections()[0].path
    narrow = LoRAAdapter.of_layers(LoRAAdapterConfig(2), {path: LoRALayer(5, 6, LoRAConfig(2))}, 2)
    with pytest.raises(ModelError.InvalidConfig, match="proj_in maps 5 to 6, the model 32 to 64"):
        model.apply_adapter(narrow)
    assert not model.has_adapter()
    with pytest.raises(InvalidIndexError, match="48"):
        model.forward(Tensor.from_numpy(np.array([[1, 48]], np.uint32)))
    ids, rows, targets, _ = batch()
    with pytest.raises(InvalidIndexError, match="8"):
        model.row_losses(ids, Tensor.from_numpy(np.array([0, 1, 8], np.int32)), targets)
    with pytest.raises(Error, match=r"got \[3\] rows and \[2\] targets or weights"):
        model.row_losses(ids, rows, targets.narrow(0, 0, 2))
    with pytest.raises(Error, match="mlx_lm_logits"):
        model.forward(Tensor.from_numpy(IDS[0]))
