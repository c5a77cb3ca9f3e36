"""From a vector for each token to one for the text. metal-candle: ``metal_candle::embeddings::pooling``.

Hidden states are ``(b, t, h)``, masks ``(b, t)`` of any dtype with 1 for tokens and 0 for padding; results ``(b, h)``.
"""

from __future__ import annotations

from typing import Any, TypeVar

from ..models.layout import hidden_value
from ..shape import expect_rank
from ..tensor.arguments import expect_tensor

T = TypeVar("T", bound=Any)

FEWEST = 1e-9
"""The number of tokens is taken for at least this: a text without any gives zeros."""
SHORTEST = 1e-12
"""The norm of a row is taken for at least this: a row of zeros stays one."""


def mean_pool(hidden: T, mask: Any) -> T:
    """The mean over the tokens. metal-candle: ``mean_pool``."""
    total, count = _sums("mean_pool", hidden, mask)
    result: T = total.broadcast_div(count.clamp(FEWEST, float("inf")))
    return result


def mean_sqrt_pool(hidden: T, mask: Any) -> T:
    """The sum over the tokens divided by the square root of their number."""
    total, count = _sums("mean_sqrt_pool", hidden, mask)
    result: T = total.broadcast_div(count.clamp(FEWEST, float("inf")).sqrt())
    return result


def cls_pool(hidden: T, mask: Any) -> T:
    """The first token's vector; the mask, which the others take, says nothing about it."""
    _expect("cls_pool", hidden)
    result: T = hidden.narrow(1, 0, 1).squeeze(1)
    return result


def max_pool(hidden: T, mask: Any) -> T:
    """The largest of each element over the tokens."""
    _expect("max_pool", hidden, mask)
    far = hidden_value(hidden.dtype)
    padding = hidden._lift(mask).to_dtype(hidden.dtype).affine(-far, far).unsqueeze(2)
    result: T = hidden.broadcast_add(padding).max(1)
    return result


def normalize(xs: T) -> T:
    """Rows ``(b, h)`` of unit length; a row of zeros stays one. metal-candle: ``normalize``."""
    expect_tensor("normalize", xs)
    norm = xs.sqr().sum_keepdim(1).sqrt().clamp(SHORTEST, float("inf"))
    result: T = xs.broadcast_div(norm)
    return result


def _sums(op: str, hidden: Any, mask: Any) -> tuple[Any, Any]:
    """The sum over the tokens ``(b, h)``, and their number ``(b, 1)``."""
    _expect(op, hidden, mask)
    weights = hidden._lift(mask).to_dtype(hidden.dtype).unsqueeze(2)
    return hidden.broadcast_mul(weights).sum(1), weights.sum(1)


def _expect(op: str, hidden: Any, *masks: Any) -> None:
    for name, tensor, rank in (("hidden", hidden, 3), *(("mask", mask, 2) for mask in masks)):
        expect_tensor(op, tensor, name)
        expect_rank(tensor.shape, rank, f"{op} {name}")


POOLS = {"cls": cls_pool, "max": max_pool, "mean": mean_pool, "mean_sqrt_len_tokens": mean_sqrt_pool}
"""The ways of pooling by the names of sentence-transformers, in the order in which it joins several."""
