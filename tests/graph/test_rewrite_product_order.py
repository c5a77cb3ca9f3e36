"""Chains of products: the fewest multiplications of all orders, layers in the chain, gradients, what must stay."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.graph.rewrite import Log
from metal_candle.graph.rewrites.product_order import LEAST_SAVING, LONGEST, PASS
from metal_candle.graph.structure import survey
from metal_candle.graph.term import Term, TermGraph, terms_of
from metal_candle.nn.linear import Linear

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import lowered, rewritten


def shapes_of_products(*results: LazyTensor) -> list[tuple[int, ...]]:
    return [tuple(term.shape) for term in rewritten(*results).order if term.operation and len(term.inputs) == 2]


def matrices(*shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [Tensor(rng.uniform(-1, 1, shape).astype(np.float32)) for shape in shapes]


def lazies(*shapes: tuple[int, ...]) -> list[LazyTensor]:
    return [LazyTensor.from_tensor(tensor) for tensor in matrices(*shapes)]


def multiplications(graph: TermGraph) -> int:
    def of(term: Term) -> int:
        return term.shape.elem_count() * term.inputs[0].shape[-1] if term.operation else 0

    return sum(of(term) for term in graph.order)


def orders(factors: tuple[Any, ...]) -> Iterator[Any]:
    """Every way to multiply them, as nested pairs."""
    if len(factors) == 1:
        yield factors[0]
    for split in range(1, len(factors)):
        for left in orders(factors[:split]):
            for right in orders(factors[split:]):
                yield (left, right)


def product(order: Any) -> Any:
    return product(order[0]) @ product(order[1]) if isinstance(order, tuple) else order


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of 3 to 5 factors, some with leading dims, and which of the ways to multiply them is recorded."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=4, max_size=6))
    leading = draw(st.sampled_from([(), (2,), (3, 2)]))
    shapes = []
    for rows, columns in pairwise(sizes):
        kept = leading[draw(st.integers(0, len(leading))) :]
        shapes.append((*[dim if draw(st.booleans()) else 1 for dim in kept], rows, columns))
    return shapes, draw(st.integers(0, 13))


@settings(deadline=None, max_examples=120)
@given(chains())
def test_no_order_takes_fewer_multiplications_unless_it_saves_little_or_takes_more_memory(
    chain: tuple[list[tuple[int, ...]], int],
) -> None:
    shapes, choice = chain
    factors = tuple(lazies(*shapes))
    ways = list(orders(factors))
    y = product(ways[choice % len(ways)])
    before = terms_of(survey([y._node]))
    log = Log(telling=True)
    after = PASS.run(before, log)
    counts = [multiplications(terms_of(survey([product(way)._node]))) for way in ways]
    recorded, found = multiplications(before), multiplications(after)
    if after is not before:
        assert found == min(counts) <= (1 - LEAST_SAVING) * recorded
    elif min(counts) <= (1 - LEAST_SAVING) * recorded:
        assert any("takes more memory" in missed.reason for missed in log.missed)
    with features.disabled("rewrite"):
        plain = product(ways[choice % len(ways)]).numpy()
    # Up to 9^4 products of numbers below 1, in another order.
    np.testing.assert_allclose(y.numpy(), plain, rtol=0, atol=1e-5 * max(1.0, float(np.abs(plain).max())))


def test_layers_are_links_of_a_chain() -> None:
    x, first, second = matrices((2, 9, 13), (13, 13), (1, 13))
    y = Linear(second).forward(Linear(first).forward(LazyTensor.from_tensor(x)))
    assert lowered(y) == ["transpose", "linear", "matmul"] or lowered(y) == [
        "transpose",
        "transpose",
        "matmul",
        "matmul",
    ]
    want = x.numpy() @ first.numpy().T @ second.numpy().T
    np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=1e-4)


def test_low_rank_updates_stay_what_they_are() -> None:
    x, a, b, base = lazies((64, 32), (32, 4), (4, 32), (64, 32))
    scaled, added, plain = x @ a @ b * 0.5, base + x @ a @ b, x @ a @ b
    assert lowered(scaled) == ["lora"]
    assert lowered(added) == ["add_lora"]
    assert shapes_of_products(plain) == [(64, 4), (64, 32)]


def test_a_product_that_is_held_is_computed_as_recorded() -> None:
    a, b, c = lazies((9, 13), (13, 13), (13, 1))
    inner = a @ b
    y = inner @ c
    assert shapes_of_products(y) == [(9, 13), (9, 1)]
    del inner
    assert shapes_of_products(y) == [(13, 1), (9, 1)]


def test_two_chains_where_one_is_a_factor_of_the_other() -> None:
    a, b, c, d, e = lazies((9, 13), (13, 13), (13, 1), (1, 9), (9, 1))
    inner = a @ b @ c
    y = inner @ d @ e
    assert shapes_of_products(inner, y) == [(13, 1), (9, 1), (1, 1), (9, 1)]
    np.testing.assert_allclose(y.numpy(), inner.numpy() @ (d.numpy() @ e.numpy()), rtol=1e-5)


def test_a_long_chain_is_taken_apart() -> None:
    factors = lazies(*[(6, 6)] * (2 * LONGEST - 2), (6, 1))
    y = reduce(lambda left, right: left @ right, factors)
    shapes = shapes_of_products(y)
    # The first part ends in a matrix; in the second all products are of one column.
    assert shapes == [(6, 6)] * (LONGEST - 1) + [(6, 1)] * (LONGEST - 1)
    want = reduce(lambda left, right: left @ right, [factor.numpy().astype(np.float64) for factor in factors])
    np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=1e-4 * float(np.abs(want).max()))


def test_a_chain_of_factors_that_share_a_matrix() -> None:
    a, v = lazies((9, 9), (9, 1))
    y = a @ a @ a @ v
    assert shapes_of_products(y) == [(9, 1)] * 3
    array = a.numpy()
    np.testing.assert_allclose(y.numpy(), array @ array @ array @ v.numpy(), rtol=0, atol=1e-5)


def test_gradients_of_every_factor() -> None:
    shapes = ((2, 9, 13), (13, 13), (13, 1))
    found = []
    for off in (False, True):
        variables = [Var.from_tensor(tensor) for tensor in matrices(*shapes)]
        a, b, c = (LazyTensor.from_tensor(variable) for variable in variables)
        if off:
            with features.disabled("rewrite"):
                grads = (a @ b @ c).sqr().sum_all().backward()
        else:
            y = (a @ b @ c).sqr().sum_all()
            assert (13, 1) in shapes_of_products(y)
            grads = y.backward()
        found.append([grads[variable].numpy() for variable in variables])
    for got, want in zip(*found):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_it_can_be_switched_off_by_name() -> None:
    a, b, c = lazies((9, 13), (13, 13), (13, 1))
    y = a @ b @ c
    with features.disabled("rewrite.product_order"):
        assert shapes_of_products(y) == [(9, 13), (9, 1)]
