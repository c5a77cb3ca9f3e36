"""Adapters packed for ``grouped_lora``: what they compute, gradients through packing, what they refuse."""

from __future__ import annotations

import doctest
from typing import Any

from metal_candle import Tensor, error
from metal_candle.kernels import packed_adapters
from metal_candle.kernels.grouped_lora import grouped_lora
from metal_candle.kernels.packed_adapters import NONE, Factors, PackedAdapters

import mlx.core as mx
import numpy as np
import pytest
from launched import FORWARD, assert_near, normal


def three() -> dict[str, Factors]:
    """From 12 to 7, of ranks 2, 5 and 1."""
    return {
        name: Factors(normal(12, rank, key=rank), normal(rank, 7, key=10 + rank), scale)
        for name, rank, scale in (("fr", 2, 0.5), ("de", 5, 2.0), ("it", 1, -1.0))
    }


def test_each_row_gets_its_adapter(device: str) -> None:
    factors, names = three(), ["de", None, "it", "de", "fr"]
    packed = PackedAdapters(factors)
    base, x = normal(5, 7), normal(5, 12, key=1)
    got = packed(base, x, packed.ids(names))
    assert grouped_lora.last is not None
    assert grouped_lora.last[0] == "grouped_lora"
    for row, name in enumerate(names):
        want = base[row]
        if name is not None:
            a, b, scale = factors[name]
            want = want + scale * (x[row] @ a) @ b
        assert_near(got[row], want, FORWARD[mx.float32])
    by_sequence = packed(mx.zeros((2, 3, 7)), normal(2, 3, 12), packed.ids(["it", None]))
    assert bool((by_sequence[1] == 0).all())
    assert bool((by_sequence[0] != 0).any())


def test_what_is_packed() -> None:
    packed = PackedAdapters(three())
    assert (packed.names, len(packed)) == (("fr", "de", "it"), 3)
    assert packed.adapters == ((2, 5, 1), (0.5, 2.0, -1.0))
    assert (packed.a.shape, packed.b.shape) == ((8, 12), (8, 7))
    assert repr(packed) == "PackedAdapters(12 to 7, ranks fr: 2, de: 5, it: 1)"
    assert packed.ids(["it", None, "fr"]).tolist() == [2, NONE, 0]
    assert packed.ids([]).shape == (0,)


def test_gradients_reach_the_factors() -> None:
    factors = three()
    base, x, names = normal(4, 7), normal(4, 12, key=1), ["de", "fr", None, "de"]

    def loss(arrays: dict[str, list[mx.array]]) -> mx.array:
        packed = PackedAdapters({name: Factors(*arrays[name], factors[name].scale) for name in arrays})
        return mx.square(packed(base, x, packed.ids(names))).sum()

    def plain(arrays: dict[str, list[mx.array]]) -> mx.array:
        total = mx.array(0.0)
        for row, name in enumerate(names):
            y = base[row]
            if name is not None:
                y = y + factors[name].scale * (x[row] @ arrays[name][0]) @ arrays[name][1]
            total = total + mx.square(y).sum()
        return total

    given = {name: [each.a, each.b] for name, each in factors.items()}
    found, wanted = mx.grad(loss)(given), mx.grad(plain)(given)
    for name in given:
        for got, want in zip(found[name], wanted[name]):
            # float32 sums of a few dozen terms, squared.
            np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({}, "PackedAdapters: got no adapters; takes one or more"),
        (
            {"a": Factors(mx.zeros((4, 2)), mx.zeros((3, 5)))},
            "PackedAdapters: got 'a' with (4, 2) and (3, 5); takes (in, rank), (rank, out)",
        ),
        (
            {"a": Factors(mx.zeros((4, 0)), mx.zeros((0, 5)))},
            "PackedAdapters: got 'a' with (4, 0) and (0, 5); takes (in, rank), (rank, out)",
        ),
        (
            {"a": Factors(mx.zeros((4, 2)), mx.zeros((2, 5))), "b": Factors(mx.zeros((3, 2)), mx.zeros((2, 5)))},
            "PackedAdapters: got 'b' from 3 to 5; takes the first adapter's 4 to 5",
        ),
        (
            {"a": Factors(mx.zeros((4, 2)), mx.zeros((2, 5), mx.float16))},
            "PackedAdapters: got 'a' of mlx.core.float32 and mlx.core.float16; takes the first adapter's "
            "mlx.core.float32",
        ),
    ],
)
def test_factors_that_do_not_fit(factors: dict[str, Factors], message: str) -> None:
    with pytest.raises(error.ArgumentValueError) as raised:
        PackedAdapters(factors)
    assert str(raised.value) == message


def test_arguments_that_do_not_fit() -> None:
    packed = PackedAdapters(three())
    base, x, ids = mx.zeros((2, 7)), mx.zeros((2, 12)), mx.array([0, 1])
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((base, mx.zeros((2, 11)), ids), "got base (2, 7) and x (2, 11); takes (…, 7) and (…, 12)"),
        ((mx.zeros((1, 7)), x, ids), "got base (1, 7) and x (2, 12); takes (…, 7) and (…, 12)"),
        ((base, x, mx.array([0])), "got ids (1,) of mlx.core.int32; takes integers of (2,), or fewer dims"),
        ((base, x, mx.array([0.0, 1.0])), "got ids (2,) of mlx.core.float32; takes integers of (2,), or fewer dims"),
        (
            (base, x.astype(mx.float16), ids),
            "got base of mlx.core.float32 and x of mlx.core.float16; takes the factors' mlx.core.float32",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(error.ArgumentValueError) as raised:
            packed(*arguments)
        assert str(raised.value) == f"PackedAdapters: {message}"
    with pytest.raises(error.ArgumentValueError) as raised:
        packed.ids(["fr", "es"])
    assert str(raised.value) == "PackedAdapters.ids: got 'es'; takes fr, de, it or None"


def test_what_stands_for_factors_and_ids() -> None:
    factors = three()
    packed = PackedAdapters(factors)
    base, x, names = normal(4, 7), normal(4, 12, key=1), ["de", None, "fr", "it"]
    want = packed(base, x, packed.ids(names))
    for ids in (names, tuple(names), [1, 77, 0, 2], np.array([1, -1, 0, 2])):
        assert mx.array_equal(packed(base, x, ids), want)
    assert mx.array_equal(packed(base, x, [None] * 4), base)
    assert mx.array_equal(packed(base[:0], x[:0], mx.zeros((0,), mx.uint32)), base[:0])
    plain = {name: tuple(each) for name, each in factors.items()}
    arrays = {
        name: Factors(np.array(each.a, np.float64), np.array(each.b), each.scale) for name, each in factors.items()
    }
    for given in (plain, arrays):
        again = PackedAdapters(given)
        assert again.adapters == packed.adapters
        assert again.a.dtype == mx.float32
        assert mx.array_equal(again.a, packed.a)
    assert PackedAdapters({"fr": factors["fr"][:2]}).adapters == ((2,), (1.0,))


def test_arguments_of_other_types() -> None:
    fr = three()["fr"]
    packed = PackedAdapters(three())
    base, x, ids = mx.zeros((2, 7)), mx.zeros((2, 12)), mx.array([0, 1])
    tensor = Tensor(np.zeros((2, 7), np.float32))
    tensors = "takes an mx.array (tensors: base.grouped_lora)"
    cases: list[tuple[Any, str]] = [
        (lambda: PackedAdapters([fr]), "PackedAdapters: got a list; takes a mapping of names to Factors"),  # type: ignore[arg-type]
        (lambda: PackedAdapters({"fr": fr.a}), "PackedAdapters: got 'fr' with an array; takes Factors(a, b, scale)"),  # type: ignore[dict-item]
        (
            lambda: PackedAdapters({"fr": (fr.a, [[1.0]])}),
            "PackedAdapters: got 'fr' with a list for a factor; takes arrays of MLX or NumPy",
        ),
        (
            lambda: PackedAdapters({"fr": Factors(fr.a, fr.b, "2")}),  # type: ignore[arg-type]
            "PackedAdapters: got 'fr' with scale '2'; takes a number",
        ),
        (lambda: packed.ids("fr"), "PackedAdapters.ids: got 'fr'; takes a sequence of names"),
        (lambda: packed.ids(3), "PackedAdapters.ids: got 3; takes a sequence of names"),  # type: ignore[arg-type]
        (lambda: packed(None, x, ids), f"PackedAdapters: got None for base; {tensors}"),  # type: ignore[arg-type]
        (lambda: packed(tensor, x, ids), f"PackedAdapters: got a Tensor for base; {tensors}"),  # type: ignore[arg-type]
        (lambda: packed(base, [[0.0] * 12] * 2, ids), f"PackedAdapters: got a list for x; {tensors}"),  # type: ignore[arg-type]
        (
            lambda: packed(base, x, [[0, 1], [2]]),
            "PackedAdapters: got a list for ids; takes integers or a sequence of names",
        ),
        (
            lambda: packed(base, x, object()),  # type: ignore[arg-type]
            "PackedAdapters: got an object for ids; takes integers or a sequence of names",
        ),
    ]
    for call, message in cases:
        with pytest.raises(error.ArgumentTypeError) as raised:
            call()
        assert str(raised.value) == message
    whole = mx.ones((3, 2), mx.int32)
    for call, message in (
        (
            lambda: PackedAdapters({"a": Factors(whole, whole.T)}),
            "PackedAdapters: got 'a' of mlx.core.int32 and mlx.core.int32; takes floats",
        ),
        (lambda: packed.ids([["fr"]]), "PackedAdapters.ids: got a list; takes fr, de, it or None"),  # type: ignore[list-item]
        (lambda: packed.ids([0]), "PackedAdapters.ids: got 0; takes fr, de, it or None"),  # type: ignore[list-item]
        (lambda: packed(base, x, ["fr", "es"]), "PackedAdapters.ids: got 'es'; takes fr, de, it or None"),
        (
            lambda: packed(base, x, [0.0, 1.0]),
            "PackedAdapters: got ids (2,) of mlx.core.float32; takes integers of (2,), or fewer dims",
        ),
    ):
        with pytest.raises(error.ArgumentValueError) as raised:
            call()
        assert str(raised.value) == message


def test_the_example() -> None:
    assert doctest.testmod(packed_adapters) == (0, 4)
