"""``ops.sdpa`` with ``softcapping``, and ``ops.softcap``: against NumPy in float64, slopes, masks, refusals."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, error
from metal_candle.nn import ops

import numpy as np
import pytest
from slope import assert_slopes
from tolerance import VALUE, assert_near

CAP, SCALE = 3.0, 1.5  # scores of up to some 20: most are capped
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
SIZES = {
    "heads": ((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8)),
    "shared": ((1, 6, 3, 8), (1, 2, 7, 8), (1, 2, 7, 5)),
    "one query": ((2, 4, 1, 8), (2, 1, 9, 8), (2, 1, 9, 8)),
}
sizes = pytest.mark.parametrize("shapes", SIZES.values(), ids=list(SIZES))


def heads(*shapes: tuple[int, ...]) -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal(shape) for shape in shapes]


def by_numpy(q: Any, k: Any, v: Any, cap: float, added: Any = 0.0) -> Any:
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(np.asarray(x, np.float64), group, 1) for x in (k, v))
    scores = cap * np.tanh(SCALE * np.asarray(q, np.float64) @ k.swapaxes(-1, -2) / cap) + added
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ v


def below(t: int, s: int) -> Any:
    """What is added to hide later keys, aligned bottom-right."""
    return np.where(np.tril(np.ones((t, s)), s - t) > 0, 0, -np.inf)


@KINDS
@sizes
@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_values(kind: Any, shapes: Any, dtype: DType, causal: bool) -> None:
    given = [kind.new(x).to_dtype(dtype) for x in heads(*shapes)]
    got = ops.sdpa(*given, do_causal=causal, scale=SCALE, softcapping=CAP)
    assert isinstance(got, kind)
    assert got.dtype == dtype
    rounded = [x.to_dtype(DType.F64).numpy() for x in given]
    added = below(shapes[0][2], shapes[1][2]) if causal else 0.0
    # Halves are rounded once, the result; nothing between.
    assert_near(got.to_dtype(DType.F64).numpy(), by_numpy(*rounded, CAP, added), VALUE[dtype])


@KINDS
@pytest.mark.parametrize("shape", [(3, 7), (6, 1, 1), (1, 1, 3, 7), (1, 6, 3, 7), ()], ids=str)
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
def test_a_mask_that_is_added_is_not_capped(kind: Any, shape: tuple[int, ...], dtype: DType) -> None:
    arrays = heads(*SIZES["shared"])
    mask = 10 * np.random.default_rng(1).standard_normal(shape)
    q, k, v, added = (kind.new(x).to_dtype(dtype) for x in (*arrays, mask))
    got = ops.sdpa(q, k, v, mask=added, scale=SCALE, softcapping=CAP).to_dtype(DType.F64).numpy()
    rounded = [x.to_dtype(DType.F64).numpy() for x in (q, k, v, added)]
    assert_near(got, by_numpy(*rounded[:3], CAP, rounded[3]), VALUE[dtype])


@KINDS
@pytest.mark.parametrize("whole", [np.uint8, np.uint32, np.int64])
def test_integers_hide_where_they_are_0(kind: Any, whole: Any) -> None:
    arrays = [x.astype(np.float32) for x in heads(*SIZES["shared"])]
    keep = (np.random.default_rng(2).integers(0, 3, (3, 7))).astype(whole)
    keep[:, 2] = 1
    got = ops.sdpa(*map(kind.new, arrays), mask=kind.new(keep), scale=SCALE, softcapping=CAP)
    assert_near(got.numpy(), by_numpy(*arrays, CAP, np.where(keep > 0, 0, -np.inf)), VALUE[DType.F32])


def test_gradients_are_slopes() -> None:
    arrays = heads((1, 4, 2, 3), (1, 2, 3, 3), (1, 2, 3, 2))
    keep = np.array([[1, 0, 1], [1, 1, 0]], np.uint8)

    def attend(q: Any, k: Any, v: Any, **how: Any) -> Any:
        return ops.sdpa(q, k, v, scale=SCALE, softcapping=CAP, **how)

    assert_slopes(attend, *arrays)
    assert_slopes(lambda q, k, v: attend(q, k, v, do_causal=True), *arrays)
    assert_slopes(lambda q, k, v: attend(q, k, v, mask=Tensor(keep)), *arrays)
    assert_slopes(lambda q, k, v, mask: attend(q, k, v, mask=mask), *arrays, heads((4, 2, 3))[0])
    assert_slopes(lambda x: ops.softcap(x, 0.5), heads((3, 4))[0])


def test_a_large_cap_is_none_and_1_is_off() -> None:
    q, k, v = (Tensor(x.astype(np.float32)) for x in heads(*SIZES["shared"]))
    plain = ops.sdpa(q, k, v, scale=SCALE).numpy()
    assert_near(ops.sdpa(q, k, v, scale=SCALE, softcapping=1.0).numpy(), plain, VALUE[DType.F32])
    assert_near(ops.sdpa(q, k, v, scale=SCALE, softcapping=1e6).numpy(), plain, VALUE[DType.F32])
    assert np.abs(ops.sdpa(q, k, v, scale=SCALE, softcapping=CAP).numpy() - plain).max() > 0.1


@KINDS
def test_compiled_it_gives_the_same(kind: Any) -> None:
    arrays = [x.astype(np.float32) for x in heads(*SIZES["shared"])]
    q, k, v = map(kind.new, arrays)
    step = mc.compile(lambda q, k, v: ops.sdpa(q, k, v, do_causal=True, scale=SCALE, softcapping=CAP))
    for _ in range(2):
        assert_near(step(q, k, v).numpy(), by_numpy(*arrays, CAP, below(3, 7)), VALUE[DType.F32])


@KINDS
def test_nothing_is_taken_as_nothing(kind: Any) -> None:
    without_queries = [kind.new(x) for x in heads((1, 2, 0, 4), (1, 2, 3, 4), (1, 2, 3, 5))]
    assert ops.sdpa(*without_queries, softcapping=CAP).dims() == [1, 2, 0, 5]
    assert ops.sdpa(*without_queries, softcapping=CAP).numpy().shape == (1, 2, 0, 5)
    without_keys = [kind.new(x) for x in heads((1, 2, 3, 4), (1, 2, 0, 4), (1, 2, 0, 5))]
    assert (ops.sdpa(*without_keys, softcapping=CAP).numpy() == np.zeros((1, 2, 3, 5))).all()


@KINDS
def test_softcap(kind: Any) -> None:
    x = 20 * heads((3, 5))[0].astype(np.float32)
    assert_near(ops.softcap(kind.new(x), 30.0).numpy(), 30 * np.tanh(x / 30.0), VALUE[DType.F32])


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan")])
def test_refusals(cap: float) -> None:
    q, k = (Tensor(x.astype(np.float32)) for x in heads((1, 4, 3, 8), (1, 3, 5, 8)))
    with pytest.raises(
        ValueError, match=rf"sdpa: got {cap} for softcapping; takes a positive number, of which 1\.0 is"
    ):
        ops.sdpa(q, q, q, softcapping=cap)
    with pytest.raises(ValueError, match=rf"softcap: got cap {cap}; takes a positive number"):
        ops.softcap(q, cap)
    with pytest.raises(error.ArgumentTypeError, match="softcap: got 'x' for cap; takes a number"):
        ops.softcap(q, "x")  # type: ignore[arg-type]
    with pytest.raises(error.ArgumentTypeError, match="sdpa: got 'x' for softcapping; takes a positive number"):
        ops.sdpa(q, q, q, softcapping="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sdpa: got shapes \(1, 4, 3, 8\) and \(1, 3, 5, 8\); takes q"):
        ops.sdpa(q, k, k, softcapping=CAP)
    with pytest.raises(ValueError, match="sdpa: got a mask and do_causal; takes one of them"):
        ops.sdpa(q, q, q, mask=q, do_causal=True, softcapping=CAP)
