"""What tells the plans of a compiled function apart, and what it takes and gives."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var
from metal_candle.shape import Shape

import numpy as np
import pytest


@dataclass
class Batch:
    x: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Frozen:
    x: Any
    name: str = ""


@dataclass(eq=False)
class Layer:
    weight: Tensor
    sizes: list[int] = field(default_factory=list)


def traces(function: Any, *calls: Any) -> int:
    f = mc.compile(function)
    for call in calls:
        f(Tensor([1.0]), call)
    return f.traces


NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.0, -0.0),
        (np.float64(0.0), np.float64(-0.0)),
        (np.float32(1.0), np.float64(1.0)),
        (1, True),
        (1, 1.0),
        (complex(0.0, 0.0), complex(0.0, -0.0)),
        ({0.0: "a"}, {-0.0: "a"}),
        ({1: "a"}, {True: "a"}),
        (frozenset([1]), frozenset([True])),
        (frozenset([(0.0,)]), frozenset([(-0.0,)])),
        ({"a": 1}, OrderedDict(a=1)),
        (defaultdict(int, a=1), defaultdict(float, a=1)),
        (Frozen(1), Frozen(True)),
        (Frozen((0.0, 1)), Frozen((-0.0, 1))),
        (Batch(Tensor([1.0]), 0.0), Batch(Tensor([1.0]), -0.0)),
    ],
)
def test_equal_values_that_are_not_the_same(one: Any, other: Any) -> None:
    assert traces(lambda x, y: x * 1.0, one, other, one, other) == 2


@pytest.mark.parametrize("value", [NAN, np.float32("nan"), {"a": [NAN]}, Frozen(NAN), frozenset([1, "a"]), Shape((2,))])
def test_the_same_value_is_traced_once(value: Any) -> None:
    assert traces(lambda x, y: x * 1.0, value, value) == 1
    assert traces(lambda x, y: x * 1.0, float("nan"), float("nan"), float("nan")) == 1


def test_containers_keep_their_classes() -> None:
    f = mc.compile(lambda parts: (type(parts), parts, OrderedDict(y=parts["x"] * 2.0)))
    kind, same, made = f(OrderedDict(x=Tensor([1.0])))
    assert kind is type(same) is type(made) is OrderedDict
    assert made["y"].to_vec1() == [2.0]
    given = defaultdict(list, x=Tensor([3.0]))
    kind, same, _ = f(given)
    assert kind is type(same) is defaultdict
    assert same.default_factory is list
    shape = mc.compile(lambda x, shape: (x, shape))(Tensor([1.0]), Shape((2, 3)))[1]
    assert (type(shape), shape) == (Shape, (2, 3))


def test_dataclasses_are_containers() -> None:
    f = mc.compile(lambda batch: (Batch(batch.x * batch.scale, 5.0), Frozen(batch.x), Frozen("a")))
    for value in (1.0, 2.0):
        batch, frozen, plain = f(Batch(Tensor([value]), 3.0))
        assert (batch.x.to_vec1(), batch.scale) == ([value * 3.0], 5.0)
        assert (frozen.x.to_vec1(), plain) == ([value], Frozen("a"))
    assert f.traces == 1
    f(Batch(Tensor([1.0]), 4.0))
    assert "traced because batch.scale is 4.0, not 3.0" in f.explain()
    g = mc.compile(lambda layer, x: x * layer.weight)
    layers = [Layer(Tensor([value]), [1]) for value in (2.0, 3.0)]
    assert [g(layer, Tensor([1.0])).to_vec1() for layer in layers] == [[2.0], [3.0]]
    assert g.traces == 1
    layers[0].weight = Tensor([7.0])
    assert g(layers[0], Tensor([1.0])).to_vec1() == [7.0]


def count() -> Iterator[int]:
    yield 1


async def wait() -> int:
    return 1


def test_what_cannot_be_replayed_is_refused_by_its_place() -> None:
    x = Tensor([1.0])
    for value, match in (
        (count(), r"argument x is of type generator; takes a list of what it gives"),
        ({"a": [iter([1])]}, r"argument x\['a'\]\[0\] is of type list_iterator; takes a list"),
        (x.mlx(), r"argument x is of type array; takes a tensor: Tensor\(array\)"),
        (Frozen(x.mlx()), r"argument x.x is of type array; takes a tensor"),
        (Frozen({1}), r"argument x.x is of type set; takes tensors, hashable values"),
        (frozenset([x]), r"argument x is a frozenset with a tensor in it; takes a list or tuple"),
        ({x: 1}, r"argument x has a tensor as a key; takes tensors as a dict's values"),
    ):
        f = mc.compile(lambda x: 1)
        with pytest.raises(mc.Error, match=match) as raised:
            f(value)
        assert raised.value.__context__ is None
        assert f.traces == 0
        with pytest.raises(mc.Error, match=match.replace("argument x", "the result")):
            mc.compile(lambda y, given: given[0])(x, Opaque(value))
    with pytest.raises(mc.Error, match=r"argument rest\[1\] is of type generator"):
        mc.compile(lambda x, *rest: x)(x, 1, count())
    for function, what in ((count, "a generator function"), (wait, "an async function"), (Waits(), "an async")):
        with pytest.raises(mc.Error, match=f"compile: got {what}"):
            mc.compile(function)


class Opaque:
    """Hashable, and so a constant of the plan."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, place: int) -> Any:
        return self.value


class Waits:
    async def __call__(self) -> int:
        return 1


def test_a_lazy_variable_among_the_arguments_is_that_variable() -> None:
    v, x = Var([1.0, 2.0]), LazyTensor.new([3.0, 4.0])
    f = mc.compile(lambda p, x: (p * p * x).sum_all().backward()[v])
    assert f(LazyTensor.from_tensor(v), x).to_vec1() == [6.0, 16.0]
    v.set(Tensor([2.0, 3.0]))
    assert f(LazyTensor.from_tensor(v), x).to_vec1() == [12.0, 24.0]
    assert f.traces == 1
    same = mc.compile(lambda p: p)
    for value in (1.0, 2.0):
        v.set(Tensor([value, value]))
        got = same(LazyTensor.from_tensor(v))
        assert (type(got), got.eval().to_vec1()) == (LazyTensor, [value, value])
    assert same.traces == 1


def test_a_lazy_tensor_of_an_earlier_value_is_no_variable() -> None:
    v = Var([1.0])
    earlier = LazyTensor.from_tensor(v)
    f = mc.compile(lambda p: p * 2.0)
    assert f(earlier).eval().to_vec1() == [2.0]
    v.set(Tensor([5.0]))
    assert f(earlier).eval().to_vec1() == [2.0]
    assert f(LazyTensor.from_tensor(v)).eval().to_vec1() == [10.0]


def test_variables_made_inside_begin_anew_at_each_call() -> None:
    @mc.compile
    def fitted(x: Tensor) -> Tensor:
        w = Var([1.0, 2.0])
        for _ in range(2):
            w.set(w - (w * x).sum_all().backward()[w])
        return w.copy()

    for _ in range(2):
        assert fitted(Tensor([1.0, 3.0])).to_vec1() == [-1.0, -4.0]
    assert fitted(Tensor([0.0, 1.0])).to_vec1() == [1.0, 0.0]
    assert "reads 0 and sets 0 variables" in fitted.explain()
    with pytest.raises(mc.Error, match=r"compile: the result\[1\] is a variable that the traced function made; takes"):
        mc.compile(lambda x: (x, Var([1.0])))(Tensor([1.0]))
