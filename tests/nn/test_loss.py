"""Losses of classes: ``nll``, ``cross_entropy`` (the record ``CrossEntropy``), ``linear_cross_entropy``."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.nn import loss

import losses
import mlx.nn as mlx_nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
REDUCTIONS = pytest.mark.parametrize("reduction", losses.REDUCTIONS)
# candle-nn's tests/loss.rs, whose figures are PyTorch's.
PUBLISHED = np.array(
    [
        [1.1050, 0.3013, -1.5394, -2.1528, -0.8634],
        [1.0730, -0.9419, -0.1670, -0.6582, 0.5061],
        [0.8318, 1.1154, -0.3610, 0.5351, 1.0830],
    ],
    np.float32,
)
LOGITS = normal(6, 5) * 3
TARGETS = np.array([1, -100, 4, 0, -100, 2])
VALID = np.where(TARGETS < 0, 3, TARGETS)
MASK = np.array([1, 0, 0.5, 2, 1, 0], np.float32)
HIDDEN, WEIGHT = normal(6, 3, seed=1), normal(5, 3, seed=2)


@KINDS
def test_published_figures(kind: Any) -> None:
    logits, target = kind.new(PUBLISHED), kind.new(np.array([1, 0, 4], np.uint32))
    for found in (loss.nll(logits.log_softmax(1), target), loss.cross_entropy(logits, target)):
        assert (tuple(found.shape), found.dtype) == ((), DType.F32)
        assert round(found.to_scalar(), 4) == 1.1312


@REDUCTIONS
@pytest.mark.parametrize("ignore_index", [None, -100])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_values(reduction: Any, ignore_index: int | None, masked: bool, smoothing: float) -> None:
    target = VALID if ignore_index is None else TARGETS
    more: dict[str, Any] = {"reduction": reduction, "ignore_index": ignore_index}
    smooth = {**more, "label_smoothing": smoothing}
    masks = (MASK,) if masked else ()

    def keywords(mask: tuple[Any, ...]) -> dict[str, Any]:
        return {"mask": mask[0] if mask else None}

    def ours(logits: Any, target: Any, *mask: Any) -> Any:
        return loss.cross_entropy(logits, target, **smooth, **keywords(mask))

    def ours_linear(hidden: Any, weight: Any, target: Any, *mask: Any) -> Any:
        return loss.linear_cross_entropy(hidden, weight, target, **smooth, **keywords(mask))

    def ours_nll(logits: Any, target: Any, *mask: Any) -> Any:
        return loss.nll(logits, target, **more, **keywords(mask))

    def want(logits: Any, target: Any, *mask: Any) -> Any:
        return losses.cross_entropy(logits, target, **smooth, **keywords(mask))

    check_dtypes(ours, (LOGITS, target, *masks), want)
    check(ours_linear, (HIDDEN, WEIGHT, target, *masks), want(HIDDEN @ WEIGHT.T, target, *masks))
    assert_slopes(lambda x: ours(x, x._lift(Tensor.new(target)), *(x._lift(Tensor.new(m)) for m in masks)), LOGITS)
    assert_slopes(
        lambda h, w: ours_linear(h, w, h._lift(Tensor.new(target)), *(h._lift(Tensor.new(m)) for m in masks)),
        HIDDEN,
        WEIGHT,
    )
    if not smoothing:
        check_dtypes(ours_nll, (LOGITS, target, *masks), lambda *a: losses.nll(*a[:2], **more, **keywords(a[2:])))
        assert_slopes(lambda x: ours_nll(x, Tensor.new(target), *map(Tensor.new, masks)), LOGITS)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.sampled_from([1, 2, 7, 33, 5000]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(losses.REDUCTIONS),
    st.sampled_from([DType.F64, DType.F32, DType.F16, DType.BF16]),
    st.integers(0, 99),
)
def test_any_shape(leading: list[int], classes: int, smoothing: float, reduction: Any, dtype: DType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = Tensor.new(rng.standard_normal((*leading, classes)) * 4, dtype=dtype)
    target = rng.integers(0, classes, leading)
    target[rng.random(leading) < 0.3] = -1
    keywords = {"reduction": reduction, "ignore_index": -1, "label_smoothing": smoothing}
    variable = Var.from_tensor(logits)
    found = loss.cross_entropy(LazyTensor.from_tensor(variable), Tensor.new(target), **keywords)
    wide = logits.to_dtype(DType.F64).numpy()
    want = losses.cross_entropy(wide, target, **keywords)
    assert (found.shape, found.dtype) == (want.shape, dtype)
    assert_near(found.numpy(), want, VALUE[dtype])
    gradient = found.backward()[variable].to_dtype(DType.F64).numpy()
    even = np.exp(losses.log_softmax(wide)) if classes else wide
    even = even - smoothing / classes
    np.put_along_axis(even, np.maximum(target, 0)[..., None], np.nan, -1)
    picked = np.exp(losses.log_softmax(wide)) - smoothing / classes - (1 - smoothing)
    even = np.where(np.isnan(even), picked, even) * (target >= 0)[..., None]
    count = max((target >= 0).sum(), 1) if reduction == "mean" else 1
    assert_near(gradient, even / count, VALUE[dtype])


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_as_mlx(reduction: Any, smoothing: float) -> None:
    logits, target = Tensor.new(LOGITS), Tensor.new(VALID)
    theirs = mlx_nn.losses.cross_entropy(
        logits.mlx(), target.mlx(), label_smoothing=smoothing, reduction=reduction, axis=-1
    )
    found = loss.cross_entropy(logits, target, label_smoothing=smoothing, reduction=reduction)
    assert_near(found.numpy(), np.array(theirs), VALUE[DType.F32])
    weighted = mlx_nn.losses.cross_entropy(logits.mlx(), target.mlx(), Tensor.new(MASK).mlx(), reduction="sum")
    found = loss.cross_entropy(logits, target, mask=Tensor.new(MASK), reduction="sum")
    assert_near(found.numpy(), np.array(weighted), VALUE[DType.F32])
    theirs = mlx_nn.losses.nll_loss(logits.mlx(), target.mlx(), reduction=reduction)
    assert_near(loss.nll(logits, target, reduction=reduction).numpy(), np.array(theirs), VALUE[DType.F32])


@pytest.mark.parametrize("classes", [5, 3000])
def test_extreme_logits(classes: int) -> None:
    """Also where a logsumexp near 1e4 is good to 1e-3 only; the large size takes the blocks of rows."""
    logits = np.full((6, classes), -1e4, np.float32)
    logits[0, 1], logits[1, 2], logits[2] = 1e4, 1e4, 1e4
    logits[3, 0], logits[4, :2], logits[5] = -np.inf, (9999.5, 1e4), normal(classes) + 1e4
    target = np.array([1, 1, 3, 0, 0, 4])
    variable = Var.new(logits)
    for smoothing in (0.0, 0.1):
        found = loss.cross_entropy(
            LazyTensor.from_tensor(variable), Tensor.new(target), reduction="none", label_smoothing=smoothing
        )
        with np.errstate(invalid="ignore"):
            want = losses.cross_entropy(logits, target, "none", label_smoothing=smoothing)
        assert_near(found.numpy(), want, VALUE[DType.F32])
        gradient = found.backward()[variable].numpy()
        even = np.exp(losses.log_softmax(logits.astype(np.float64))) - smoothing / classes
        even[np.arange(6), target] -= 1 - smoothing
        assert_near(gradient, even, VALUE[DType.F32])
    row = np.zeros((1, classes), np.float32)
    for bad in (np.inf, np.nan):
        row[0, 0] = bad
        assert not np.isfinite(loss.cross_entropy(Tensor.new(row), Tensor.new([1])).to_scalar())


@KINDS
@pytest.mark.parametrize("classes", [5, 3000])
def test_what_does_not_count_may_be_anything(kind: Any, classes: int) -> None:
    logits, target = normal(4, classes), np.array([1, -100, 0, 7_000])
    logits[1], logits[3, :2] = np.nan, (np.inf, -np.inf)
    mask = Tensor.new(np.array([1, 1, 2, 0], np.uint8))
    variable = Var.new(logits)
    lift = (lambda x: x) if kind is Tensor else LazyTensor.from_tensor
    for smoothing in (0.0, 0.1):
        found = loss.cross_entropy(
            lift(variable), Tensor.new(target), ignore_index=-100, mask=mask, label_smoothing=smoothing
        )
        want = losses.cross_entropy(logits[::2], target[::2], mask=[1, 2], label_smoothing=smoothing)
        assert_near(found.numpy(), want, VALUE[DType.F32])
        gradient = found.backward()[variable].numpy()
        assert not gradient[1::2].any()
        assert (gradient[::2] != 0).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_of_a_head_that_do_not_count(compiled: bool) -> None:
    hidden, weight = HIDDEN.copy(), Var.new(WEIGHT)
    hidden[1] = np.nan
    variable, target = Var.new(hidden), Tensor.new(TARGETS)

    def gradients(hidden: Any, weight: Any) -> Any:
        found = loss.linear_cross_entropy(hidden, weight, target, ignore_index=-100).backward()
        return found[hidden], found[weight]

    got = (mc.compile(gradients) if compiled else gradients)(variable, weight)
    kept = TARGETS >= 0
    even = np.exp(losses.log_softmax(hidden[kept] @ WEIGHT.T).astype(np.float64))
    even[np.arange(4), TARGETS[kept]] -= 1
    want = np.zeros(hidden.shape)
    want[kept] = even @ WEIGHT / 4
    assert_near(got[0].numpy(), want, VALUE[DType.F32])
    assert_near(got[1].numpy(), even.T @ hidden[kept] / 4, VALUE[DType.F32])


@KINDS
@pytest.mark.parametrize("of", ["nll", "cross_entropy", "linear_cross_entropy"])
def test_nothing_counts(kind: Any, of: str) -> None:
    """The mean is 0, not NaN, and so are the gradients: the weights survive."""
    variable, head = Var.new(normal(3, 4)), Var.new(normal(5, 4))
    lift = (lambda x: x) if kind is Tensor else LazyTensor.from_tensor
    weights = (head,) if of == "linear_cross_entropy" else ()
    function = getattr(loss, of)
    for keywords in ({"ignore_index": 2}, {"mask": Tensor.new([0, 0, 0])}):
        found = function(lift(variable), *weights, Tensor.new([2, 2, 2]), **keywords)
        grads = found.backward()
        assert found.to_scalar() == 0
        assert not any(grads[x].numpy().any() for x in (variable, *weights))
    none = Tensor.new(np.zeros((0, 4), np.float32)), *weights, Tensor.new(np.zeros((0,), np.int64))
    assert function(*none).to_scalar() == 0
    assert function(*none, reduction="none").shape == (0,)


@pytest.mark.parametrize(
    ("dtype", "ignore_index", "stored"),
    [
        (DType.U32, -100, 4294967196),
        (DType.U32, 4294967295, 4294967295),
        (DType.U8, -100, 156),
        (DType.U8, 0, 0),
        (DType.I32, -100, -100),
        (DType.I64, 2**63 - 1, 2**63 - 1),
    ],
    ids=str,
)
def test_ignored_ids_of_every_dtype(dtype: DType, ignore_index: int, stored: int) -> None:
    target = Tensor.new(np.array([1, stored, 3]), dtype=dtype)
    logits = normal(3, 5)
    want = losses.cross_entropy(logits, np.array([1, -7, 3]), ignore_index=-7)
    assert_near(
        loss.cross_entropy(Tensor.new(logits), target, ignore_index=ignore_index).numpy(), want, VALUE[DType.F32]
    )


def test_the_largest_id_counts_as_candle_has_it() -> None:
    logits, target = normal(2, 5), Tensor.new(np.array([1, 2**32 - 1]), dtype=DType.U32)
    want = losses.cross_entropy(logits[:1], np.array([1])) / 2
    for found in (
        loss.cross_entropy(Tensor.new(logits), target),
        loss.nll(Tensor.new(logits).log_softmax(1), target),
    ):
        assert_near(found.numpy(), want, VALUE[DType.F32])


@KINDS
def test_targets_outside(kind: Any) -> None:
    for bad in (5, -1, -100):
        target = kind.new(np.array([1, bad, -100]))
        for function, first in ((loss.nll, (3, 5)), (loss.cross_entropy, (3, 5))):
            with pytest.raises(mc.InvalidIndexError, match=rf"index {bad} is out of range; takes 0\.\.4"):
                function(kind.new(normal(*first)), target, ignore_index=None if bad == -100 else -100).to_scalar()
        with pytest.raises(mc.InvalidIndexError, match=rf"index {bad} is out of range; takes 0\.\.4"):
            loss.linear_cross_entropy(kind.new(normal(3, 2)), kind.new(normal(5, 2)), target).to_scalar()


def test_a_batch_of_sequences() -> None:
    logits, target = normal(2, 3, 5), np.array([[1, 2, -100], [0, -100, 4]])
    flat = loss.cross_entropy(Tensor.new(logits).flatten_to(1), Tensor.new(target).flatten_all(), ignore_index=-100)
    found = loss.cross_entropy(Tensor.new(logits), Tensor.new(target), ignore_index=-100)
    assert found.to_scalar() == flat.to_scalar()
    mask = Tensor.new(np.array([[1], [0]], np.uint8))  # one for each sequence
    want = losses.cross_entropy(logits, target, ignore_index=-100, mask=mask.numpy())
    assert_near(
        loss.cross_entropy(Tensor.new(logits), Tensor.new(target), ignore_index=-100, mask=mask).numpy(),
        want,
        VALUE[DType.F32],
    )
    hidden, weight = normal(2, 3, 4), normal(5, 4)
    rows = loss.linear_cross_entropy(
        Tensor.new(hidden), Tensor.new(weight), Tensor.new(target), ignore_index=-100, reduction="none"
    )
    want = losses.cross_entropy(hidden @ weight.T, target, "none", -100)
    assert_near(rows.numpy(), want, VALUE[DType.F32])


def test_weights_may_be_learned() -> None:
    target = Tensor.new(VALID)
    for reduction in losses.REDUCTIONS:
        assert_slopes(
            lambda x, w, r=reduction: loss.cross_entropy(x, x._lift(target), mask=w, reduction=r), LOGITS, MASK + 0.25
        )


def test_halves() -> None:
    """The sum is taken in F32, of a head the result is, too."""
    logits, target = normal(700, 50), Tensor.new(np.zeros(700, np.int64))
    for dtype in (DType.F16, DType.BF16):
        half = Tensor.new(logits).to_dtype(dtype)
        want = losses.cross_entropy(half.to_dtype(DType.F32).numpy(), np.zeros(700, np.int64))
        found = loss.cross_entropy(half, target)
        assert found.to_scalar() == Tensor.new(float(want), dtype=DType.F32).to_dtype(dtype).to_scalar()
        head = Tensor.new(normal(50, 8)).to_dtype(dtype)
        assert loss.linear_cross_entropy(head, head, target.narrow(0, 0, 50)).dtype is DType.F32


def test_refusals_when_recorded() -> None:
    logits, target = LazyTensor.new(normal(3, 5)), LazyTensor.new(np.array([1, 2, 3]))
    for name in ("nll", "cross_entropy"):
        function = getattr(loss, name)
        for wrong in (logits.narrow(0, 0, 2), logits.unsqueeze(0)):
            with pytest.raises(mc.ShapeMismatchError, match=rf"^{name}: got shapes .* and \(3,\); takes \(n, c\) or"):
                function(wrong, target)
        with pytest.raises(mc.ShapeMismatchError, match=name):
            function(logits, target.unsqueeze(1))
        with pytest.raises(mc.UnexpectedNumberOfDimsError, match=rf"^{name}: got rank 1, .* takes rank 2 or more$"):
            function(logits.get(0), target.get(0))
        with pytest.raises(mc.UnsupportedDTypeForOpError, match=rf"^{name}: got dtype f32; takes ids of u8"):
            function(logits, target.to_dtype(DType.F32))
        with pytest.raises(
            mc.ArgumentValueError, match=rf"^{name}: got reduction 'avg'; takes 'mean', 'sum' or 'none'$"
        ):
            function(logits, target, reduction="avg")
        with pytest.raises(mc.ArgumentTypeError, match=rf"^{name}: got reduction None; takes"):
            function(logits, target, reduction=None)
        with pytest.raises(mc.ArgumentTypeError, match=rf"^{name}: got ignore_index 1.5; takes an integer$"):
            function(logits, target, ignore_index=1.5)
        with pytest.raises(mc.ArgumentValueError, match=r"got ignore_index 300; takes what targets of u8 can be$"):
            function(logits, target.to_dtype(DType.U8), ignore_index=300)
        with pytest.raises(
            mc.ShapeMismatchBinaryOpError, match=rf"^{name}: got shapes \(2,\) and \(3,\); takes a mask"
        ):
            function(logits, target, mask=target.narrow(0, 0, 2))
        with pytest.raises(mc.ArgumentTypeError, match=rf"^{name}: got mask a list; takes a tensor$"):
            function(logits, target, mask=[1, 1, 0])
        with pytest.raises(mc.ArgumentTypeError, match=rf"^{name}: got target a list; takes a tensor of ids$"):
            function(logits, [1, 2, 3])
    wide = LazyTensor.new(normal(3, 200))
    with pytest.raises(mc.ArgumentValueError, match=r"got ignore_index -100; takes what targets of u8"):
        loss.cross_entropy(wide, target.to_dtype(DType.U8), ignore_index=-100)  # 156 is a class
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(
            mc.ArgumentValueError, match=r"^cross_entropy: got label_smoothing .*; takes a number from 0"
        ):
            loss.cross_entropy(logits, target, label_smoothing=bad)
    with pytest.raises(mc.ArgumentTypeError, match=r"^cross_entropy: got '0.1' for label_smoothing; takes a number$"):
        loss.cross_entropy(logits, target, label_smoothing="0.1")  # type: ignore[arg-type]
    with pytest.raises(mc.ShapeMismatchError, match=r"^linear_cross_entropy: got shapes \(3, 5\) and \(5, 3\); takes"):
        loss.linear_cross_entropy(logits, LazyTensor.new(normal(5, 3)), target)
    with pytest.raises(mc.UnsupportedDTypeForOpError, match=r"cross_entropy: got dtype i64; takes bf16"):
        loss.cross_entropy(logits.to_dtype(DType.I64), target)
