"""In which order the three factors of a low-rank update are multiplied: the one with the fewest multiplications.

x is ``(rows, width)``, A ``(width, rank)``, B ``(rank, out)``, the cotangent g ``(rows, out)``. At the ranks of
adapters every product goes through the rank. From where the rank nears the widths on, the product of the other two may
be the smaller one: ``x · (A · B)``, and ``xᵀ · g`` for the gradients of both factors.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple


class Order(NamedTuple):
    """For each of the gradients of x, A and B whether its products go through the rank.

    - x: ``(g · Bᵀ) · Aᵀ``, or ``g · (A · B)ᵀ``.
    - A: ``xᵀ · (g · Bᵀ)``, or ``(xᵀ · g) · Bᵀ``.
    - B: ``(x · A)ᵀ · g``, or ``Aᵀ · (xᵀ · g)``.
    """

    x: bool = True
    a: bool = True
    b: bool = True


THROUGH_RANK = Order()


def is_low(width: int, rank: int, out: int) -> bool:
    """Whether no other order is cheaper for any number of rows, so that nothing has to be counted.

    At a quarter of the smaller width m, ``xᵀ · g`` alone takes rows · width · out, and the products that it replaces
    take rows · rank · (2 · width + out) or rows · rank · (width + 2 · out), which is at most three quarters of that.
    """
    return 4 * rank <= width and 4 * rank <= out


def merging_is_cheaper(rows: int, width: int, rank: int, out: int) -> bool:
    """Whether ``x · (A · B)`` takes fewer multiplications than ``(x · A) · B``."""
    return width * out * (rank + rows) < rows * rank * (width + out)


def merges(rows: int, width: int, rank: int, out: int, is_f16: bool) -> bool:
    """Whether the result is computed as ``x · (A · B)``.

    Not of float16, where a product that nobody spelled out may leave the range.
    """
    return not is_f16 and not is_low(width, rank, out) and merging_is_cheaper(rows, width, rank, out)


def order_taken(rows: int, width: int, rank: int, out: int, needs: tuple[bool, ...], is_f16: bool) -> Order:
    """The order in which the gradients are computed: the cheapest one, but of float16 through the rank."""
    if is_f16 or is_low(width, rank, out):
        return THROUGH_RANK
    return order_of_gradients(rows, width, rank, out, needs)


def multiplications(order: Order, rows: int, width: int, rank: int, out: int, needs: tuple[bool, ...]) -> int:
    """How many multiplications the gradients that ``needs`` marks take; what two of them share counts once."""
    of_x, of_a, of_b = needs
    narrow, wide, whole = rows * rank * width, rows * rank * out, rows * width * out
    merged = width * rank * out
    count = 0
    if (of_x and order.x) or (of_a and order.a):
        count += wide  # g · Bᵀ
    if (of_a and not order.a) or (of_b and not order.b):
        count += whole  # xᵀ · g
    if of_x:
        count += narrow if order.x else merged + whole
    if of_a:
        count += narrow if order.a else merged
    if of_b:
        count += narrow + wide if order.b else merged
    return count


@lru_cache(maxsize=1024)
def order_of_gradients(rows: int, width: int, rank: int, out: int, needs: tuple[bool, ...]) -> Order:
    """The cheapest order, through the rank where it makes no difference."""
    orders = (Order(*each) for each in product((True, False), repeat=3))
    return min(orders, key=lambda order: multiplications(order, rows, width, rank, out, needs))
