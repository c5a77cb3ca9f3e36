"""Rows packed into sequences: the same losses and gradients as apart, nothing lost, nothing seen across rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Device, DType, Tensor, TrainingError
from metal_candle.models import Decoder, load_model
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
from metal_candle.training.batch_loss import batch_loss, check_packable, targets_of
from metal_candle.training.data import Example, batches, collate, pack, packed_batch_count, packed_batches
from metal_candle.training.data.packing import BLOCKS, LENGTHS, blocks_of, collate_packed
from metal_candle.training.epochs import planned_steps

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ModelDir = Callable[..., Path]
BASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral, window shorter than the rows": {"model_type": "mistral", "sliding_window": 4},
    "qwen3": {"model_type": "qwen3"},
}
each_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())


def row(length: int, line: int, seed: int = 0) -> Example:
    tokens = np.random.default_rng((seed, line)).integers(3, 64, length).tolist()
    return Example(tokens, [i >= length // 3 and i > 0 for i in range(length)], Path("made.jsonl"), line)


ROWS = [row(length, line) for line, length in enumerate((12, 5, 30, 9, 2, 17))]


def numbered(length: int, line: int) -> Example:
    """A row whose tokens say which row and place they are from."""
    tokens = [1000 * line + i for i in range(length)]
    return Example(tokens, [i > 0 and i % 3 != 1 for i in range(length)], Path("made.jsonl"), line)


def model_of(folder: Path, dtype: str = "f32", seed: int = 7) -> tuple[Decoder, LoRAAdapter]:
    """A model with an adapter whose B is not 0, so that both factors have gradients."""
    Device.default().set_seed(seed)
    model = load_model(folder, dtype).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, tuple(TargetModule)))
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.randn(0.0, 0.2, layer.lora_b().shape, layer.lora_b().device))
    model.apply_adapter(adapter)
    return model, adapter


def loss_and_gradients(model: Decoder, adapter: LoRAAdapter, batch: Any) -> tuple[float, list[Any]]:
    loss = batch_loss(model, *targets_of(batch, batch.trained_tokens, model.device).tensors())
    grads = loss.backward()
    return float(loss), [grads[var].numpy() for var in adapter.trainable_variables()]


def row_losses(model: Decoder, batch: Any) -> Any:
    """The loss at each trained token, in the batch's order."""
    targets = targets_of(batch, 1, model.device)
    layout = None if targets.segments is None else model.packed(targets.segments, targets.positions)
    losses = model.row_losses(targets.ids, targets.rows, targets.targets, layout).numpy()
    return losses[: batch.trained_tokens]


# --- the network ------------------------------------------------------------------------------


@each_base
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_loss_and_every_gradient_are_those_of_rows_apart(
    tiny_model_dir: ModelDir, base: dict[str, Any], dtype: str
) -> None:
    model, adapter = model_of(tiny_model_dir(**base), dtype)
    apart = loss_and_gradients(model, adapter, collate(ROWS, 2, 64))
    packed = loss_and_gradients(model, adapter, collate_packed([ROWS[:3], ROWS[3:]], 2, 64))
    # float32: sums over other orders, each some roundings of 6e-8. bfloat16 keeps 8 bits: rows of other products
    # round apart by 0.4 % here and there, of gradients that are sums of some 50 tokens.
    tolerance = 2e-6 if dtype == "f32" else 2e-2
    assert packed[0] == pytest.approx(apart[0], rel=tolerance)
    assert len(packed[1]) == 2 * 14  # two layers of seven projections
    for mine, theirs in zip(packed[1], apart[1]):
        assert np.abs(theirs).max() > 0
        assert np.abs(mine - theirs).max() < 5 * tolerance * np.abs(theirs).max()


@each_base
def test_another_row_changes_no_bit_of_a_row_s_losses(tiny_model_dir: ModelDir, base: dict[str, Any]) -> None:
    model, _ = model_of(tiny_model_dir(**base))
    before = row_losses(model, collate_packed([ROWS[:4]], 2, 64))
    changed = row(5, 99, seed=1)
    after = row_losses(model, collate_packed([[ROWS[0], changed, *ROWS[2:4]]], 2, 64))
    first, second = ROWS[0].trained_tokens, ROWS[0].trained_tokens + changed.trained_tokens
    np.testing.assert_array_equal(before[:first], after[:first])
    np.testing.assert_array_equal(before[second:], after[second:])
    assert np.abs(before[first:second] - after[first:second]).max() > 0.1


def test_padding_and_the_order_of_rows_change_nothing(tiny_model_dir: ModelDir) -> None:
    model, _ = model_of(tiny_model_dir())
    there = row_losses(model, collate_packed([ROWS[:2]], 2, 64, pad_to=1))
    padded = row_losses(model, collate_packed([ROWS[:2]], 2, 512))
    back = row_losses(model, collate_packed([ROWS[1::-1]], 2, 64))
    count = ROWS[0].trained_tokens
    # Sums over other lengths: some roundings of losses of about 4.
    np.testing.assert_allclose(padded, there, atol=2e-6)
    np.testing.assert_allclose(np.concatenate([back[-count:], back[:-count]]), there, atol=2e-6)


def test_the_mask_is_of_each_row_by_itself(tiny_model_dir: ModelDir) -> None:
    model, _ = model_of(tiny_model_dir())
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 0]], np.int32)
    layout = model.packed(Tensor.from_numpy(segments), Tensor.from_numpy(positions))
    whole, near = layout.mask(None), layout.mask(2)
    assert whole.dtype is DType.U8
    assert whole.numpy()[0, 0].tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert near.numpy()[0, 0].tolist()[2] == [0, 1, 1, 0, 0, 0]
    cos, _ = layout.tables()
    np.testing.assert_array_equal(cos.numpy()[0], model.rotary.rows(0, 6)[0][positions[0]])


# --- by blocks --------------------------------------------------------------------------------

SHORT = [row(length, line) for line, length in enumerate((12, 5, 17, 9, 2, 17, 4, 13, 16, 3, 8, 6))]


@pytest.fixture
def all_pairs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has attention score all pairs from here on."""
    return lambda: monkeypatch.setattr("metal_candle.training.batch_loss.blocks_of", lambda positions: 1)


@each_base
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_by_blocks_loss_and_every_gradient_are_those_of_rows_apart(
    tiny_model_dir: ModelDir, base: dict[str, Any], dtype: str, all_pairs: Callable[[], None]
) -> None:
    model, adapter = model_of(tiny_model_dir(**base), dtype)
    together = collate_packed([SHORT[:7], SHORT[7:]], 2, 64)
    assert targets_of(together, 1).tensors()[4].shape == (2, 4, 16)
    by_blocks = loss_and_gradients(model, adapter, together)
    apart = loss_and_gradients(model, adapter, collate(SHORT, 2, 64))
    all_pairs()
    whole = loss_and_gradients(model, adapter, together)
    # As above.
    tolerance = 2e-6 if dtype == "f32" else 2e-2
    for loss, gradients in (apart, whole):
        assert by_blocks[0] == pytest.approx(loss, rel=tolerance)
        for mine, theirs in zip(by_blocks[1], gradients):
            assert np.abs(theirs).max() > 0
            assert np.abs(mine - theirs).max() < 5 * tolerance * np.abs(theirs).max()


@each_base
def test_by_blocks_another_row_changes_no_bit_of_a_row_s_losses(tiny_model_dir: ModelDir, base: dict[str, Any]) -> None:
    model, _ = model_of(tiny_model_dir(**base))
    changed = row(17, 99, seed=1)  # across the border of two blocks
    before, after = (
        row_losses(model, collate_packed([[*SHORT[:2], third, *SHORT[3:7]]], 2, 64)) for third in (SHORT[2], changed)
    )
    first = sum(each.trained_tokens for each in SHORT[:2])
    second = first + changed.trained_tokens
    np.testing.assert_array_equal(before[:first], after[:first])
    np.testing.assert_array_equal(before[second:], after[second:])
    assert np.abs(before[first:second] - after[first:second]).max() > 0.1


def test_recomputed_blocks_of_the_network_see_the_same(tiny_model_dir: ModelDir) -> None:
    model, adapter = model_of(tiny_model_dir())
    batch = collate_packed([SHORT[:7], SHORT[7:]], 2, 64)
    kept = loss_and_gradients(model, adapter, batch)
    model.gradient_checkpointing()
    again = loss_and_gradients(model, adapter, batch)
    assert again[0] == kept[0]
    for mine, theirs in zip(again[1], kept[1]):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_mask_by_blocks_is_a_band_of_the_whole_mask(tiny_model_dir: ModelDir, window: int | None) -> None:
    model, _ = model_of(tiny_model_dir())
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 4, 4, 0, 0], [1, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4, 4]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0, 1, 0, 0], [0, 1, 2, 3, 0, 0, 1, 2, 3, 0, 1, 2]], np.int32)
    one, many = (
        model.packed(*(Tensor.from_numpy(each.reshape(shape)) for each in (segments, positions)))
        for shape in ((2, 12), (2, 3, 4))
    )
    whole, band = one.mask(window).numpy(), many.mask(window).numpy().reshape(2, 3, 4, 8)
    assert not band[:, 0, :, :4].any()
    for block in range(1, 3):
        rows, keys = slice(4 * block, 4 * block + 4), slice(4 * block - 4, 4 * block + 4)
        # What padding sees is of no account.
        np.testing.assert_array_equal(band[1, block], whole[1, 0, rows, keys])
    np.testing.assert_array_equal(band[:, 0, :, 4:], whole[:, 0, :4, :4])
    for mine, theirs in zip(many.tables(), one.tables()):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


@pytest.mark.parametrize(
    ("time", "longest", "blocks"),
    [(64, 16, 4), (64, 17, 1), (64, 8, 8), (64, 4, 16), (64, 1, 16), (72, 9, 8), (72, 10, 4), (50, 3, 1), (3, 1, 1)],
)
def test_blocks_are_as_many_as_hold_the_longest_row(time: int, longest: int, blocks: int) -> None:
    positions = np.arange(time, dtype=np.int32)[None] % longest
    assert blocks_of(positions) == blocks
    assert blocks in (*BLOCKS, 1)


# --- packing ----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_packs_hold_every_row_once_and_are_filled(lengths: list[int], capacity: int) -> None:
    packs = pack(lengths, capacity)
    assert sorted(i for found in packs for i in found) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in found) for found in packs]
    assert all(total <= capacity or len(found) == 1 for total, found in zip(filled, packs))
    # Best fit opens a pack only where no other has room, so that no two could be one.
    smallest = sorted(filled)[:2]
    assert len(packs) < 2 or sum(smallest) > capacity


def test_a_row_goes_where_it_fits_best() -> None:
    assert pack([4, 8, 5, 2, 1], 10) == [[1, 3], [2, 0, 4]]
    assert pack([], 10) == []
    assert pack([12, 3], 10) == [[0], [1]]


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([39, 64, 100]),
)
@settings(max_examples=100, deadline=None)
def test_an_epoch_gives_every_token_once(lengths: list[int], batch_size: int, epoch: int, max_length: int) -> None:
    examples = [numbered(length, i + 1) for i, length in enumerate(lengths)]
    options: dict[str, Any] = {"seed": 5, "epoch": epoch, "max_length": max_length}
    formed = list(packed_batches(examples, batch_size, pad_id=2, **options))
    assert len(formed) == packed_batch_count(examples, batch_size, **options)
    seen = []
    for batch in formed:
        assert batch.segments is not None
        assert batch.positions is not None
        arrays = (batch.inputs, batch.targets, batch.segments, batch.positions)
        assert {array.shape for array in arrays} == {batch.mask.shape}
        assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
        assert batch.mask.shape[0] <= batch_size
        assert batch.mask.shape[1] <= max_length
        for b, numbers in enumerate(batch.segments):
            assert not batch.mask[b][numbers == 0].any()
            assert (batch.inputs[b][numbers == 0] == 2).all()
            for number in range(1, int(numbers.max()) + 1):
                places = np.flatnonzero(numbers == number)
                example = examples[batch.inputs[b, places[0]] // 1000 - 1]
                seen.append(example.line)
                assert np.all(np.diff(places) == 1)
                assert batch.positions[b, places].tolist() == list(range(len(example.tokens) - 1))
                assert batch.inputs[b, places].tolist() == example.tokens[:-1]
                assert batch.targets[b, places].tolist() == example.tokens[1:]
                assert batch.mask[b, places].tolist() == example.targets[1:]
    assert sorted(seen) == list(range(1, len(lengths) + 1))


def epoch_of(examples: list[Example], seed: int = 0, epoch: int = 0, batch_size: int = 2) -> list[Any]:
    return list(packed_batches(examples, batch_size, seed=seed, epoch=epoch, pad_id=2, max_length=256))


def test_order_depends_on_seed_and_epoch_and_padding_is_less_than_sorted() -> None:
    lengths = np.random.default_rng(0).integers(4, 120, size=600)
    examples = [numbered(int(length), i + 1) for i, length in enumerate(lengths)]

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.inputs[:, 0].tolist() for batch in epoch_of(examples, seed, epoch)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    tokens = int(lengths.sum()) - len(lengths)
    packed = sum(batch.inputs.size for batch in epoch_of(examples))
    by_length = batches(examples, 8, seed=0, epoch=0, pad_id=2, max_length=256)
    assert tokens / packed > 0.97
    assert tokens / sum(batch.inputs.size for batch in by_length) < 0.93


def test_few_lengths_of_sequences_occur() -> None:
    random = np.random.default_rng(1)
    widths = set()
    for epoch in range(20):
        lengths = random.integers(2, 250, size=int(random.integers(1, 9)))
        examples = [numbered(int(length), i + 1) for i, length in enumerate(lengths)]
        widths |= {batch.inputs.shape[1] for batch in epoch_of(examples, 0, epoch, 1)}
    assert 1 < len(widths) <= LENGTHS


def test_options_of_packing_are_checked_at_the_call() -> None:
    for options in ({"batch_size": 0}, {"pad_to": 0}, {"max_length": 0}):
        values = {"batch_size": 1, "seed": 0, "epoch": 0, "pad_id": 0, "max_length": 8, **options}
        with pytest.raises(TrainingError.InvalidConfig, match="is 0; takes at least 1"):
            packed_batches([row(3, 1)], **values)


# --- a run ------------------------------------------------------------------------------------


def trainer_of(folder: Path, **settings: Any) -> AdapterTrainer:
    Device.default().set_seed(7)
    model = load_model(folder).model
    values = {"lr_scheduler": LRScheduler.constant(1e-2), "num_epochs": 2, "max_length": 40, "batch_size": 2}
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, tuple(TargetModule)))
    return AdapterTrainer(model, adapter, TrainingConfig(**{**values, **settings}), pad_id=2)


def test_a_run_makes_the_planned_steps_and_evaluates_alike(tiny_model_dir: ModelDir) -> None:
    examples = [row(int(n), i) for i, n in enumerate(np.random.default_rng(0).integers(3, 30, 40))]
    folder = tiny_model_dir()
    packed, apart = trainer_of(folder, packing=True), trainer_of(folder)
    assert packed.evaluate(examples).loss == pytest.approx(apart.evaluate(examples).loss, rel=2e-6)
    events = list(packed.run(examples, ROWS[:2]))
    steps = [event for event in events if isinstance(event, StepMetrics)]
    assert len(steps) == planned_steps(packed.config, examples) == packed.total_steps(examples)
    assert len(steps) < apart.total_steps(examples)  # a batch is of sequences, which hold several rows
    assert sum(step.trained_tokens for step in steps) == 2 * sum(example.trained_tokens for example in examples)
    held_out = [event.loss for event in events if isinstance(event, EvalMetrics)]
    assert held_out[-1] != held_out[0]


def test_one_update_on_the_same_rows_gives_the_same_adapter(tiny_model_dir: ModelDir) -> None:
    folder = tiny_model_dir()
    packed, apart = trainer_of(folder, packing=True), trainer_of(folder)
    mine = packed.train_step([collate_packed([ROWS[:3], ROWS[3:]], 2, 64)])
    theirs = apart.train_step([collate(ROWS, 2, 64)])
    assert mine.trained_tokens == theirs.trained_tokens
    assert mine.loss == pytest.approx(theirs.loss, rel=2e-6)
    assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)


def test_batches_of_a_shape_share_a_plan(tiny_model_dir: ModelDir) -> None:
    trainer = trainer_of(tiny_model_dir(), packing=True)
    for split in (2, 3, 4):
        trainer.train_step([collate_packed([ROWS[:split], ROWS[split:]], 2, 512)])
    assert trainer.update._at_once.traces == 1


class NoLayout:
    """A base of another library: it has no say in where its tokens stand."""

    def row_losses(self, ids: Any, rows: Any, targets: Any) -> Any:
        raise AssertionError


def test_a_model_that_takes_no_layout_is_refused_by_name() -> None:
    said = "packing: NoLayout cannot be told which tokens belong together; takes a model"
    with pytest.raises(TrainingError.InvalidConfig, match=said):
        check_packable(NoLayout())  # type: ignore[arg-type]
    batch = collate_packed([ROWS[:2]], 2, 64)
    with pytest.raises(TrainingError.InvalidConfig, match=said):
        batch_loss(NoLayout(), *targets_of(batch, 1).tensors())  # type: ignore[arg-type]
