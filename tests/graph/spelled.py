"""What people spell out, on any value of a random graph: pieces that rules look for, each in some variants.

Each takes two values, a number, a number that picks the variant, and how dtypes are converted; the first value's shape
may be any. Factors are multiples of an eighth, so that every dtype holds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from metal_candle import DType

import numpy as np

To = Callable[[Any, DType], Any]
Make = Callable[[Any, Any, float, int, To], Any]


def rows_of(x: Any) -> Any:
    """A value as a matrix."""
    return x.reshape((-1, x.shape[-1])) if len(x.shape) else x.reshape((1, 1))


def matrix(like: Any, *shape: int) -> Any:
    """A fixed matrix of a value's dtype."""
    eighths = np.round(8 * np.sin(1.0 + 3 * np.arange(math.prod(shape))))
    eighths[eighths == 0] = 1
    return type(like).new((eighths / 8).astype(np.float32).reshape(shape)).to_dtype(like.dtype)


def _weight(x: Any, y: Any, *shape: int) -> Any:
    """A matrix that depends on ``y``."""
    return matrix(x, *shape) + y.tanh().mean_all().to_dtype(x.dtype).broadcast_as(shape)


def _beside(x: Any) -> Any:
    """Another value of the same shape."""
    return x.sin() + 0.25


def scalars(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    return [
        lambda: x * number * 2.0,
        lambda: (x / 4.0).mul_scalar(number),
        lambda: x.neg().neg(),
        lambda: -(x * 0.5),
        lambda: (x * 3.0).affine(number, 0.5),
        lambda: 1.0 - x * 0.25,
        lambda: (x * 1.0) / 1.0 + 0.0,
        lambda: x.tanh().powf(1.0) + x.tanh().powf(2.0),
        lambda: (x.tanh().sqr() + 1e-3).powf(0.5),
        lambda: x.tanh().powf(2.0),
        lambda: x * 1e-3 * 1e-4,
        lambda: x * 2.0 * 0.0 + x,
    ][k % 12]()


def moves(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    if len(x.shape) < 2 or max(x.shape) < 2:
        return x.unsqueeze(0).squeeze(0).reshape((1, -1))
    rank, shape = len(x.shape), tuple(x.shape)
    rolled = (*range(1, rank), 0)
    long = max(range(rank), key=lambda dim: shape[dim])
    size = shape[long]
    cube = matrix(x, 3, 3, 3) * x.mean_all()
    square = matrix(x, 3, 3) * x.mean_all()
    return [
        lambda: x.t().t(),
        lambda: cube.permute((2, 0, 1)).permute((2, 0, 1)) + cube.transpose(0, 1).transpose(0, 2),
        lambda: x.permute(rolled).transpose(0, rank - 1).transpose(0, 1),
        lambda: x.permute(tuple(range(rank))).tanh(),
        lambda: x.reshape((-1,)).reshape((1, -1)),
        lambda: x.unsqueeze(1).reshape((-1, shape[-1])),
        lambda: x.t().reshape((-1,)).reshape(shape),
        lambda: x.unsqueeze(rank).squeeze(rank),
        lambda: x.narrow(long, 1, size - 1).narrow(long, 0, size - 1).narrow(long, (size - 1) // 2, 1),
        lambda: x.narrow(long, 0, size).broadcast_as(shape),
        lambda: square.broadcast_as((1, 3, 3)).broadcast_as((2, 3, 3)).sin(),
        lambda: x.narrow(0, shape[0] - 1, 1).narrow(rank - 1, shape[-1] // 2, 1),
    ][k % 12]()


def casts(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    wide = DType.F32 if k % 2 and x.dtype is not DType.F64 else DType.F64
    back = to(to(x, wide), x.dtype)
    return [lambda: back, lambda: to(to(x.tanh(), wide), DType.BF16), lambda: to(to(x, DType.BF16), x.dtype)][k % 3]()


def softmaxes(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    if not len(x.shape):
        return x
    dim = k % len(x.shape) if k % 3 == 0 else len(x.shape) - 1
    shifted = x.broadcast_sub(x.max_keepdim(dim))
    return [
        lambda: shifted.exp().broadcast_div(shifted.exp().sum_keepdim(dim)),
        lambda: shifted.exp() * shifted.exp().sum_keepdim(dim).recip(),
        lambda: shifted.broadcast_sub(shifted.exp().sum_keepdim(dim).log()),
        lambda: x.broadcast_sub(x.log_sum_exp(dim).unsqueeze(dim)),
        lambda: x.tanh().softmax(dim).log(),
    ][k // 3 % 5]()


def masks(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    if not len(x.shape):
        return x
    n = x.shape[-1]
    scores = x.tanh() * (number or 2.0) if k % 2 else x.tanh()
    hidden = type(x).new((np.arange(n) % 3 == 1).astype(np.uint8)).broadcast_as(tuple(x.shape))
    below = type(x).new(-math.inf if k % 5 else -64.0).to_dtype(x.dtype).broadcast_as(tuple(x.shape))
    return [
        lambda: scores.broadcast_add(_weight(x, y, n)).softmax(-1),
        lambda: (x.tanh() * 0.5).softmax(-1),
        lambda: hidden.where_cond(below, scores).softmax(-1),
    ][k // 2 % 3]()


def norms(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    if not len(x.shape):
        return x
    n = x.shape[-1]
    weight, bias = matrix(x, n) + number, _weight(x, y, n)
    narrow = x.dtype
    if k % 3 == 0 and narrow is not DType.F64:
        x = to(x, DType.F32)
    eps = (1e-2, 1e-5, 0.5)[k % 3]
    square = [x.sqr().mean_keepdim(-1), (x * x).sum_keepdim(-1) / n, x.powf(2.0).mean_keepdim(-1)][k // 3 % 3] + eps
    centred = x.broadcast_sub([x.mean_keepdim(-1), x.sum_keepdim(-1) / n][k // 2 % 2])
    variance = centred.sqr().mean_keepdim(-1) + eps
    made = [
        lambda: x.broadcast_div(square.sqrt()),
        lambda: x * square.powf(-0.5),
        lambda: (x * weight.to_dtype(x.dtype)) * square.sqrt().recip(),
        lambda: centred.broadcast_div(variance.sqrt()),
        lambda: centred * variance.powf(-0.5),
    ][k % 5]()
    made = to(made, narrow)
    if k % 7 > 2 and k % 5 != 2:
        made = weight * made
    return made + bias if k % 7 > 4 else made


def blocks(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    """A sum, its norm, and who else uses the sum."""
    if not len(x.shape):
        return x
    weight, bias = matrix(x, x.shape[-1]), matrix(x, x.shape[-1]) + number
    total = x + _beside(x)
    before = total.tanh()
    normed = [
        lambda: total.rms_norm(1e-2),
        lambda: total.rms_norm(0.5) * weight,
        lambda: total.layer_norm(1e-2),
        lambda: total.layer_norm(0.5) * weight + bias,
    ][k % 4]()
    return [lambda: normed, lambda: normed + total, lambda: normed * before, lambda: total - normed * before][
        k // 4 % 4
    ]()


def gates(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    up = _beside(x)
    return [
        lambda: x.silu() * up,
        lambda: x * up * x.sigmoid(),
        lambda: x * (x.sigmoid() * up),
        lambda: x / (1.0 + (-x).exp()) * up,
        lambda: ((-x).exp() + 1.0).recip() * up,
        lambda: x * x.sigmoid(),
        lambda: x / (1.0 + (x * -2.0).exp()),
        lambda: x.silu() * up + x.silu(),
    ][k % 8]()


def low_rank(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    rows = rows_of(x)
    n = rows.shape[-1]
    if n < 2:
        return x
    a, b, scale = _weight(rows, y, n, 1), matrix(rows, 1, n), number or 1.5
    update = [
        lambda: rows @ a @ b * scale,
        lambda: (rows @ a) * scale @ b,
        lambda: -((rows @ a) * scale @ b),
        lambda: rows @ a @ b,
        lambda: rows @ b.t() @ a.t() / (scale + 8.0),
    ][k % 5]()
    update = update.reshape(tuple(x.shape))
    return [lambda: x + update, lambda: _beside(rows) + rows_of(update), lambda: update][k // 5 % 3]()


def products(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    rows = rows_of(x)
    n = rows.shape[-1]
    square, column, beta = _weight(rows, y, n, n), matrix(rows, n, 1), number or -1.0
    return [
        lambda: rows @ square @ column,
        lambda: rows.narrow(0, 0, 1) @ (square @ matrix(rows, n, n + 1)),
        lambda: rows @ square @ matrix(rows, n, n) @ column,
        lambda: rows @ square + _beside(rows),
        lambda: _beside(rows) * beta + rows @ square,
        lambda: -(rows @ square) + _beside(rows) * 0.5,
        lambda: (rows @ square) * beta + matrix(rows, n),
        lambda: _beside(rows) - rows @ square,
    ][k % 8]()


def attentions(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    q = rows_of(x)
    t, d = q.shape
    if t * d > 48:
        return x
    keys, v, back = _beside(q), _weight(q, y, t, d), q.dtype
    grouped = k % 3 == 0
    if grouped:
        q = type(q).cat([q.reshape((1, 1, t, d)), keys.reshape((1, 1, t, d))], 1)
        keys, v = (type(q).cat([each.reshape((1, 1, t, d))] * 2, 2).reshape((1, 2, t, d)) for each in (keys, v))
    if k % 2 and back is not DType.F64:
        q, keys, v = (to(each, DType.F32) for each in (q, keys, v))
    scores = [lambda: q @ keys.t() * 0.5, lambda: (q / 2.0) @ keys.t(), lambda: q @ keys.t()][k // 2 % 3]()
    hidden = type(q).new(np.triu(np.ones((t, t), np.uint8), 1)).broadcast_as(tuple(scores.shape))
    below = type(q).new(-math.inf).to_dtype(scores.dtype).broadcast_as(tuple(scores.shape))
    scores = [
        lambda: hidden.where_cond(below, scores),
        lambda: scores + hidden.to_dtype(scores.dtype) * -64.0,
        lambda: scores,
    ][k // 5 % 3]()
    made = to(scores.softmax(-1) @ v, back)
    return made.sum(1).squeeze(0) if grouped else made


def rotary(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    rows = rows_of(x)
    t, d = rows.shape
    if d % 2:
        return x
    half, cat = d // 2, type(rows).cat
    cos, sin = matrix(rows, t, half), _weight(rows, y, t, half)
    first, second = rows.narrow(1, 0, half), rows.narrow(1, half, half)
    even, odd = rows[:, ::2], rows[:, 1::2]
    pairs = rows.reshape((t, half, 2))
    one, other = pairs.narrow(2, 0, 1), pairs.narrow(2, 1, 1)
    wide_cos, wide_sin = cos.reshape((t, half, 1)), sin.reshape((t, half, 1))
    return [
        lambda: cat([first * cos - second * sin, first * sin + second * cos], 1),
        lambda: rows * cat([cos, cos], 1) + cat([-second, first], 1) * cat([sin, sin], 1),
        lambda: type(rows).stack([even * cos - odd * sin, even * sin + odd * cos], 2).reshape((t, d)),
        lambda: cat([one * wide_cos - other * wide_sin, one * wide_sin + other * wide_cos], 2).reshape((t, d)),
    ][k % 4]()


def picked(x: Any, y: Any, number: float, k: int, to: To) -> Any:
    rows = rows_of(x)
    t, n = rows.shape
    ids = type(rows).new(((np.arange(t) * 7 + k) % n).astype(np.uint32)).unsqueeze(1)
    return rows.log_softmax(-1).gather(ids, 1)


SPELLED: dict[str, Make] = {
    "scalars": scalars,
    "moves": moves,
    "casts": casts,
    "softmaxes": softmaxes,
    "masks": masks,
    "norms": norms,
    "blocks": blocks,
    "gates": gates,
    "low_rank": low_rank,
    "products": products,
    "attentions": attentions,
    "rotary": rotary,
    "picked": picked,
}
