"""The cheaper order of a chain of matrix products: A·(B·C) for (A·B)·C where that multiplies less.

The best order is found by dynamic programming over the sizes (Godbole 1973, https://doi.org/10.1109/TC.1973.5009182). A
chain goes on through products whose values nobody else needs. The results differ by rounding; where a factor holds an
infinity, or a product leaves the range of the dtype in one order only, they also differ in what is infinite or NaN.
Products of float16 leave its range easily, and keep their order.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple, Union

from ...dtype import DType
from ...shape import broadcast_shapes
from ..operations.linalg import Linear, Matmul
from ..operations.movement import Transpose
from ..rewrite import Example, Log, Pass
from ..term import Term, TermGraph, apply, rebuilt

LEAST_SAVING = 0.2
"""The share of the multiplications that another order has to save."""
LONGEST = 32
"""Factors of a chain; the search takes steps by their third power. A longer chain is taken apart."""

# An order: a factor's place, or the two orders whose results are multiplied.
Order = Union[int, "tuple[Order, Order]"]


class Factor(NamedTuple):
    """A matrix of a chain; ``turned`` if it is a layer's weight ``(out, in)``."""

    term: Term
    turned: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """Its rows and columns as a factor."""
        rows, columns = self.term.shape[-2:]
        return (columns, rows) if self.turned else (rows, columns)


class Work(NamedTuple):
    """What an order takes: multiplications of numbers, and elements of the products on the way."""

    multiplications: int
    memory: int


class Chain:
    """Factors and the order in which they are multiplied."""

    def __init__(self, factors: tuple[Factor, ...], order: Order) -> None:
        self.factors, self.order = factors, order

    def joined(self, other: Chain) -> Chain:
        """This chain's product times the other's."""
        return Chain(self.factors + other.factors, (self.order, _moved(other.order, len(self.factors))))


def _moved(order: Order, by: int) -> Order:
    return order + by if isinstance(order, int) else (_moved(order[0], by), _moved(order[1], by))


def _ends(order: Order) -> tuple[int, int]:
    """The first and the last factor."""
    if isinstance(order, int):
        return order, order
    return _ends(order[0])[0], _ends(order[1])[1]


class Sizes:
    """How much the products of a chain's factors take."""

    def __init__(self, factors: tuple[Factor, ...]) -> None:
        self.rows = [factor.sizes[0] for factor in factors]
        self.columns = [factor.sizes[1] for factor in factors]
        # How many matrices the product of the factors i to j has.
        self.matrices: dict[tuple[int, int], int] = {}
        for i in range(len(factors)):
            leading: tuple[int, ...] = ()
            for j in range(i, len(factors)):
                leading = broadcast_shapes(leading, factors[j].term.shape[:-2], "matmul")
                self.matrices[i, j] = prod(leading)

    def of_product(self, first: int, split: int, last: int) -> int:
        """Multiplications for the product of the factors up to ``split`` and the others."""
        return self.matrices[first, last] * self.rows[first] * self.columns[split] * self.columns[last]

    def of_order(self, order: Order) -> Work:
        """All that an order takes; its result itself takes no memory on the way."""
        if isinstance(order, int):
            return Work(0, 0)
        parts = [self.of_order(part) for part in order]
        first, last = _ends(order)
        inner = sum(self._elements(part) for part in order if not isinstance(part, int))
        own = self.of_product(first, _ends(order[0])[1], last)
        return Work(own + sum(part.multiplications for part in parts), inner + sum(part.memory for part in parts))

    def _elements(self, order: Order) -> int:
        first, last = _ends(order)
        return self.matrices[first, last] * self.rows[first] * self.columns[last]

    def best(self) -> Order:
        """The order of the fewest multiplications."""
        count = len(self.rows)
        least = {(i, i): 0 for i in range(count)}
        orders: dict[tuple[int, int], Order] = {(i, i): i for i in range(count)}
        for length in range(1, count):
            for first in range(count - length):
                last = first + length
                costs = [
                    least[first, split] + least[split + 1, last] + self.of_product(first, split, last)
                    for split in range(first, last)
                ]
                least[first, last] = min(costs)
                split = first + costs.index(min(costs))
                orders[first, last] = (orders[first, split], orders[split + 1, last])
        return orders[0, count - 1]


def _chains(graph: TermGraph) -> dict[Term, Chain]:
    """The longest chains of three or more factors, by the product they end in."""
    chains: dict[Term, Chain] = {}
    part_of_another: set[Term] = set()

    def chain_of(source: Term, product: Term) -> Chain | None:
        return None if source.is_shared() or source.device != product.device else chains.get(source)

    for term in graph.order:
        if not isinstance(term.operation, (Matmul, Linear)) or len(term.inputs[0].shape) < 2:
            continue
        turned = isinstance(term.operation, Linear)
        left, right = term.inputs
        sides = [chain_of(left, term), None if turned else chain_of(right, term)]
        alone = [Chain((Factor(left),), 0), Chain((Factor(right, turned),), 0)]
        joined = (sides[0] or alone[0]).joined(sides[1] or alone[1])
        if len(joined.factors) > LONGEST:
            sides, joined = [None, None], alone[0].joined(alone[1])
        part_of_another.update(source for source, side in zip(term.inputs, sides) if side is not None)
        chains[term] = joined
    return {term: chain for term, chain in chains.items() if term not in part_of_another and len(chain.factors) > 2}


def _multiplied(factors: tuple[Factor, ...], order: Order) -> Factor:
    if isinstance(order, int):
        return factors[order]
    left, right = (_multiplied(factors, part) for part in order)
    rows = apply(Transpose(0, 1), left.term) if left.turned else left.term
    return Factor(apply(Linear() if right.turned else Matmul(), rows, right.term))


def _better(term: Term, chain: Chain, log: Log) -> Order | None:
    sizes = Sizes(chain.factors)
    best = sizes.best()
    before, after = sizes.of_order(chain.order), sizes.of_order(best)
    saved = before.multiplications - after.multiplications
    if saved <= 0:
        return None
    if term.dtype is DType.F16:
        log.note_missed("product_order", term, "in another order a product may leave the range of f16")
        return None
    if saved < LEAST_SAVING * before.multiplications:
        share = f"{100 * saved / before.multiplications:.0f} %"
        log.note_missed("product_order", term, f"another order saves {share} of the multiplications only")
        return None
    if after.memory > before.memory:
        grown = f"from {before.memory} elements on the way to {after.memory}"
        log.note_missed("product_order", term, f"the order of the fewest multiplications takes more memory: {grown}")
        return None
    return best


def reorder(graph: TermGraph, log: Log) -> TermGraph:
    """The graph with its chains of products in the cheaper order."""
    replaced: dict[Term, Term] = {}
    orders = {term: (chain, _better(term, chain, log)) for term, chain in _chains(graph).items()}
    if all(order is None for _, order in orders.values()):
        return graph
    for term in graph.order:
        chain, order = orders.get(term, (None, None))
        if chain is not None and order is not None:
            factors = tuple(Factor(replaced.get(factor.term, factor.term), factor.turned) for factor in chain.factors)
            made = _multiplied(factors, order).term
            made.place = term.place
            log.note_fired("product_order", term, made)
            replaced[term] = made
        elif any(source in replaced for source in term.inputs):
            inputs = tuple(replaced.get(source, source) for source in term.inputs)
            replaced[term] = Term(term.operation, inputs, term.meta, term.device, term.place)
    return rebuilt(graph, replaced)


EXAMPLES = (
    Example(((5, 13), (13, 13), (13, 1)), lambda a, b, c: a @ b @ c, "matmul(a, matmul(b, c))"),
    Example(((1, 5), (5, 13), (13, 7)), lambda a, b, c: a @ (b @ c), "matmul(matmul(a, b), c)"),
    Example(
        ((9, 5), (5, 11), (11, 3), (3, 2)),
        lambda a, b, c, d: a @ b @ c @ d,
        "matmul(a, matmul(b, matmul(c, d)))",
    ),
    Example(
        ((9, 2), (2, 9), (9, 2), (2, 9)),
        lambda a, b, c, d: (a @ b) @ (c @ d),
        "matmul(a, matmul(matmul(b, c), d))",
    ),
    Example(((2, 3, 13), (13, 13), (13, 1)), lambda a, b, c: a @ b @ c, "matmul(a, matmul(b, c))"),
    Example(((2, 5, 13), (2, 13, 13), (2, 13, 1)), lambda a, b, c: a @ b @ c, "matmul(a, matmul(b, c))"),
    Example(((3, 1, 5, 13), (2, 13, 13), (13, 1)), lambda a, b, c: a @ b @ c, "matmul(a, matmul(b, c))"),
    Example(
        ((5, 13), (13, 13), (13, 1)),
        lambda a, b, c: a @ b @ c,
        "matmul(matmul(a, b), c)",
        because="may leave the range of f16",
        dtypes=("f16",),
    ),
    # A chain ends where something else than a product is done.
    Example(
        ((5, 13), (13, 13), (13, 1), (1, 9), (9, 1)),
        lambda a, b, c, d, e: (a @ b @ c).exp() @ d @ e,
        "matmul(exp(matmul(a, matmul(b, c))), matmul(d, e))",
    ),
    Example(
        ((5, 13), (13, 13), (13, 1)),
        lambda a, b, c: (a @ b) * 2.0 @ c,
        "matmul(affine(matmul(a, b); mul=2.0, add=0.0), c)",
    ),
    # Low rank: in the order of the fewest multiplications already.
    Example(((5, 13), (13, 4), (4, 13)), lambda x, a, b: x @ a @ b, "matmul(matmul(x, a), b)"),
    # Many rows against one matrix for each.
    Example(((2, 2, 7), (2, 7, 7), (7, 7)), lambda a, b, c: a @ b @ c, "matmul(matmul(a, b), c)"),
    Example(
        ((7, 7), (7, 7), (7, 5)),
        lambda a, b, c: a @ b @ c,
        "matmul(matmul(a, b), c)",
        because="another order saves 17 % of the multiplications only",
    ),
    Example(
        ((6, 2), (2, 6), (6, 30)),
        lambda a, b, c: a @ b @ c,
        "matmul(matmul(a, b), c)",
        because="takes more memory: from 36 elements on the way to 60",
    ),
    Example(
        ((5, 13), (13, 13), (13, 1)),
        lambda a, b, c: (a @ b @ c) + (a @ b).sum_keepdim(1),
        "add(matmul(matmul(a, b), c), sum(matmul(a, b); dims=(1,), keepdim=True))",
    ),
)

PASS = Pass("product_order", function=reorder, examples=EXAMPLES)
