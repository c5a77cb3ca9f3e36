"""The losses of v1 against NumPy in float64; what they refuse."""

from __future__ import annotations

from metal_candle import InvalidIndexError, LazyTensor, Tensor, TrainingError, Var
from metal_candle.training import cross_entropy_loss, cross_entropy_loss_with_smoothing

import numpy as np
import pytest

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((2, 5, 7))).astype(np.float32)
TARGETS = RNG.integers(0, 7, (2, 5))


def expected(logits: np.ndarray, targets: np.ndarray, smoothing: float = 0.0, kept: np.ndarray | None = None) -> float:
    wide = logits.astype(np.float64)
    log = wide - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True)) - wide.max(-1, keepdims=True)
    kept = np.ones(targets.shape, bool) if kept is None else kept
    picked = np.take_along_axis(log, np.where(kept, targets, 0)[..., None], -1)[..., 0]
    return float((1 - smoothing) * -picked[kept].mean() + smoothing * -log[kept].mean())


# float32 sums of ten terms below 15 against float64.
CLOSE = 1e-5


@pytest.mark.parametrize("dtype", ["i64", "i32", "u32"])
def test_the_mean_over_all_positions(dtype: str) -> None:
    loss = cross_entropy_loss(Tensor(LOGITS), Tensor(TARGETS, dtype=dtype))
    assert loss.rank == 0
    assert loss.to_scalar() == pytest.approx(expected(LOGITS, TARGETS), abs=CLOSE)


@pytest.mark.parametrize(
    ("dtype", "index"), [("i64", -100), ("i64", 3), ("u32", 2**32 - 1), ("u32", -100), ("i32", -1), ("i64", 2**32 - 1)]
)
def test_ignored_positions_do_not_count_whatever_their_id(dtype: str, index: int) -> None:
    kept = TARGETS != 3
    stored = np.where(kept, TARGETS, index).astype(np.int64)
    targets = Tensor((stored % 2**32).astype(np.uint32)) if dtype == "u32" else Tensor(stored, dtype=dtype)
    logits = Var(LOGITS)
    loss = cross_entropy_loss(logits, targets, ignore_index=index)
    assert loss.to_scalar() == pytest.approx(expected(LOGITS, TARGETS, kept=kept), abs=CLOSE)
    gradient = loss.backward()[logits].numpy()
    assert not gradient[~kept].any()
    assert np.abs(gradient[kept]).max(-1).min() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("index", [None, 3])
def test_smoothing_counts_the_kept_positions_only(smoothing: float, index: int | None) -> None:
    loss = cross_entropy_loss_with_smoothing(Tensor(LOGITS), Tensor(TARGETS), smoothing, index)
    kept = None if index is None else index != TARGETS
    assert loss.to_scalar() == pytest.approx(expected(LOGITS, TARGETS, smoothing, kept), abs=CLOSE)


def test_halves_are_summed_in_float32() -> None:
    # 4096 positions of loss ln 2: a running sum in bfloat16 stops at 256.
    logits = Tensor.zeros((1, 4096, 2), dtype="bf16")
    loss = cross_entropy_loss(logits, Tensor.zeros((1, 4096), dtype="i64"))
    assert loss.to_dtype("f32").to_scalar() == pytest.approx(np.log(2), rel=2**-8)  # one rounding to bfloat16


def test_lazy_logits_give_a_lazy_loss() -> None:
    loss = cross_entropy_loss(LazyTensor.from_tensor(Tensor(LOGITS)), Tensor(TARGETS))
    assert isinstance(loss, LazyTensor)
    assert loss.eval().to_scalar() == pytest.approx(expected(LOGITS, TARGETS), abs=CLOSE)
    unknown = LazyTensor.from_tensor(Tensor(np.zeros((2, 5), np.int64))) * 1
    none_left = cross_entropy_loss(LazyTensor.from_tensor(Tensor(LOGITS)), unknown, ignore_index=0)
    assert none_left.eval().to_scalar() == 0.0  # recorded targets are not known yet


@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (LOGITS[0], TARGETS, r"got logits \(5, 7\) f32, targets \(2, 5\) i64; takes \(b, t, v\) of a float dtype"),
        (LOGITS, TARGETS[0], r"targets \(5,\) i64; takes"),
        (LOGITS, TARGETS[:, :4], r"targets \(2, 4\) i64; takes"),
        (LOGITS, TARGETS.astype(np.float32), r"targets \(2, 5\) f32; takes"),
        (LOGITS.astype(np.int64), TARGETS, r"got logits \(2, 5, 7\) i64"),
        (LOGITS[:, :0], TARGETS[:, :0], "takes at least one position and one class"),
    ],
)
def test_other_shapes_and_dtypes_are_refused(logits: np.ndarray, targets: np.ndarray, text: str) -> None:
    with pytest.raises(TrainingError.InvalidConfig, match=text):
        cross_entropy_loss(Tensor(logits), Tensor(targets))


def test_nothing_left_and_wrong_numbers_are_refused() -> None:
    with pytest.raises(TrainingError.InvalidConfig, match="all 10 targets are ignore_index -100"):
        cross_entropy_loss(Tensor(LOGITS), Tensor(np.full((2, 5), -100)), ignore_index=-100)
    for smoothing in (1.0, -0.1, float("nan")):
        with pytest.raises(TrainingError.InvalidConfig, match="takes 0 <= smoothing < 1"):
            cross_entropy_loss_with_smoothing(Tensor(LOGITS), Tensor(TARGETS), smoothing)
    with pytest.raises(InvalidIndexError, match="index 7 is out of range"):
        cross_entropy_loss(Tensor(LOGITS), Tensor(np.full((2, 5), 7)))
