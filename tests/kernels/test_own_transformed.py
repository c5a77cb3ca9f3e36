"""Every kernel under MLX's transformations, of all its arguments at once: on the CPU, and by each back-end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from metal_candle import features, settings
from metal_candle.kernels import custom
from metal_candle.kernels.elementary import exp, sigmoid, silu
from metal_candle.kernels.gelu_erf import gelu_erf
from metal_candle.kernels.grouped_lora import Adapters
from metal_candle.kernels.head_cross_entropy import head_cross_entropy

import instantiations
import mlx.core as mx
import numpy as np
import pytest
from launched import Tolerance, assert_near, normal
from opaque import Launching, opaque

OWN = instantiations.kernels()
KERNELS = {**OWN, **{kernel.name: kernel for kernel in (exp, gelu_erf, sigmoid, silu, head_cross_entropy)}}
# Second derivatives are sums of products of three rounded numbers: 4 times what a gradient is allowed.
NEAR = Tolerance(1e-4, 2e-5)

ARGUMENTS: dict[str, Sequence[Any]] = {
    "add_layer_norm": (normal(3, 33), normal(3, 33, key=1), normal(33, key=2), normal(33, key=3), 1e-2),
    "add_lora": (normal(3, 9), normal(3, 33, key=1) / 6, normal(33, 4, key=2), normal(4, 9, key=3), 0.5),
    "add_rms_norm": (normal(3, 33), normal(3, 33, key=1), normal(33, key=2), 1e-2),
    "cross_entropy": (normal(4, 1027), mx.array([0, 3, 1026, 5]), 0.1),
    "exp": (normal(3, 1500),),
    "gelu_erf": (normal(3, 1500),),
    "grouped_lora": (
        normal(3, 9),
        normal(3, 33, key=1) / 6,
        mx.array([0, 1, 5]),
        normal(5, 33, key=2),
        normal(5, 9, key=3),
        Adapters((2, 3), (0.5, 2.0)),
    ),
    "head_cross_entropy": (normal(4, 9), normal(1027, 9, key=1), mx.array([0, 3, 1026, 5])),
    "layer_norm": (normal(3, 33), normal(33, key=2), normal(33, key=3), 1e-2),
    "log_softmax": (normal(4, 1027),),
    "lora": (normal(3, 33) / 6, normal(33, 4, key=2), normal(4, 9, key=3), 0.5),
    "picked_log_softmax": (normal(4, 1027), mx.array([[0], [3], [1026], [5]])),
    "rms_norm": (normal(3, 33), normal(33, key=2), 1e-2),
    "rope": (normal(2, 3, 5, 8), normal(5, 4, key=1), normal(5, 4, key=2), False),
    "sigmoid": (normal(3, 1500),),
    "silu": (normal(3, 1500),),
    "softcap": (normal(3, 33), 5.0),
    "softmax": (normal(2, 3, 1027), 0.5, normal(3, 1027, key=1)),
    "softmax_backward": (mx.softmax(normal(3, 33)), normal(3, 33, key=1), 0.5, False),
    "swiglu": (normal(3, 1500), normal(3, 1500, key=1)),
}


class Case(NamedTuple):
    """A kernel's arguments, of which those at ``places`` are differentiated."""

    arguments: Sequence[Any]
    places: list[int]

    @property
    def arrays(self) -> list[mx.array]:
        return [self.arguments[i] for i in self.places]

    def along(self) -> list[mx.array]:
        """A direction for each."""
        return [normal(*array.shape, key=40 + i) for i, array in enumerate(self.arrays)]

    def results(self, function: Callable[..., Any]) -> Callable[..., list[mx.array]]:
        """``function`` of the differentiated arguments."""

        def of_arrays(*arrays: mx.array) -> list[mx.array]:
            full = list(self.arguments)
            for i, array in zip(self.places, arrays):
                full[i] = array
            found = function(*full)
            return list(found) if isinstance(found, tuple) else [found]

        return of_arrays

    def gradients(self, function: Callable[..., Any]) -> Callable[..., list[mx.array]]:
        """Those of a number that every element of every result has another share in, and not a linear one."""

        def number(*arrays: mx.array) -> mx.array:
            found = self.results(function)(*arrays)
            return sum((mx.sum(normal(*r.shape, key=50 + i) * r * (1 + r)) for i, r in enumerate(found)), mx.array(0.0))

        by_all = mx.grad(number, tuple(range(len(self.places))))
        return lambda *arrays: list(by_all(*arrays))

    def second(self, function: Callable[..., Any]) -> list[mx.array]:
        """The gradients of the gradients' products with a direction, all in one."""

        def number(*arrays: mx.array) -> mx.array:
            found = self.gradients(function)(*arrays)
            return sum((mx.sum(g * d) for g, d in zip(found, self.along())), mx.array(0.0))

        return list(mx.grad(number, tuple(range(len(self.places))))(*self.arrays))


def case(name: str) -> Case:
    arguments = ARGUMENTS[name]
    floating = [isinstance(each, mx.array) and mx.issubdtype(each.dtype, mx.floating) for each in arguments]
    return Case(arguments, [i for i, each in enumerate(floating) if each])


def assert_same(got: Sequence[mx.array], want: Sequence[mx.array]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want):
        assert_near(one, other, NEAR)


def assert_transformed(name: str) -> None:
    kernel, of = KERNELS[name], case(name)
    ours, plain = of.results(kernel), of.results(kernel.reference)
    assert_same(of.second(kernel), of.second(kernel.reference))
    assert_same(mx.jvp(ours, of.arrays, of.along())[1], mx.jvp(plain, of.arrays, of.along())[1])
    slopes = [mx.jvp(of.gradients(each), of.arrays, of.along())[1] for each in (kernel, kernel.reference)]
    assert_same(*slopes)


def test_every_kernel_with_a_launch_has_a_case() -> None:
    assert set(OWN) <= set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_second_derivatives_and_tangents_on_the_cpu(name: str) -> None:
    with mx.stream(mx.cpu):
        assert_transformed(name)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_batches_and_their_gradients_on_the_cpu(name: str) -> None:
    of = case(name)
    several = [mx.stack([array, array / 2]) for array in of.arrays]
    # Of mx.addmm whose base alone is mapped MLX 0.32.4 says that it must be broadcast: here x is.
    mapped = 1 if name in ("add_lora", "grouped_lora") else 0
    one = tuple(0 if i == mapped else None for i in range(len(several)))
    mixed = [array if axis is None else each for array, each, axis in zip(of.arrays, several, one)]

    def each(function: Callable[..., Any]) -> list[mx.array]:
        def of_batch(*arrays: mx.array) -> list[mx.array]:
            return list(mx.vmap(of.results(function))(*arrays))

        def of_slopes(*arrays: mx.array) -> mx.array:
            slopes = mx.vmap(of.gradients(function))(*arrays)
            return sum((mx.sum(g * normal(*g.shape, key=70 + i)) for i, g in enumerate(slopes)), mx.array(0.0))

        cotangents = [normal(*r.shape, key=60 + i) for i, r in enumerate(of_batch(*several))]
        return [
            *of_batch(*several),
            *mx.vmap(of.results(function), in_axes=one)(*mixed),
            *mx.vjp(of_batch, several, cotangents)[1],
            *mx.vmap(of.gradients(function))(*several),
            *mx.vmap(of.gradients(function), in_axes=one)(*mixed),
            *mx.grad(of_slopes, tuple(range(len(several))))(*several),
        ]

    with mx.stream(mx.cpu):
        assert_same(each(KERNELS[name]), each(KERNELS[name].reference))


@pytest.mark.parametrize("name", OWN)
def test_second_derivatives_and_tangents_of_launches(device: str, name: str) -> None:
    assert_transformed(name)


@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
def test_second_derivatives_against_differences_of_the_gradient(name: str) -> None:
    """A second derivative in a direction is how the gradient changes along it, whoever computes that."""
    kernel, of = KERNELS[name], case(name)
    step = 1e-2
    with mx.stream(mx.cpu):
        ends = [
            of.gradients(kernel.reference)(*[a + side * step * d for a, d in zip(of.arrays, of.along())])
            for side in (1, -1)
        ]
        for got, above, below in zip(of.second(kernel), *ends):
            slope = (np.array(above) - np.array(below)) / (2 * step)
            # float32's rounding of 1e-7 divided by the step, and its square times a third derivative of order 10.
            np.testing.assert_allclose(np.array(got), slope, atol=2e-3 * float(np.abs(slope).max()))


def test_the_stand_in_is_as_opaque_as_a_launch() -> None:
    x = normal(2, 3)
    for transformed in (lambda f: mx.jvp(f, [x], [x]), lambda f: mx.vmap(f)(x)):
        with pytest.raises(ValueError, match="Not implemented for"):
            transformed(lambda x: opaque(x * 2, x))
    assert opaque(x * 2, x).tolist() == (x * 2).tolist()
    assert np.isnan(np.array(opaque(x * mx.nan, x * mx.nan))).all()


@pytest.mark.parametrize("name", OWN)
def test_tangents_do_not_ask_a_launch(name: str) -> None:
    """A launch's cotangent is a constant here, so that zeros as its result do not matter."""
    kernel, of, device = OWN[name], case(name), Launching()
    shapes = [result.shape for result in of.results(kernel.reference)(*of.arrays)]

    def slopes(function: Callable[..., Any]) -> list[mx.array]:
        cotangents = [normal(*shape, key=60 + i) for i, shape in enumerate(shapes)]
        found = mx.jvp(lambda *a: mx.vjp(of.results(function), list(a), cotangents)[1], of.arrays, of.along())[1]
        return list(found)

    with custom.using(device), settings.KERNELS.override("custom"):
        tangents = mx.jvp(of.results(kernel), of.arrays, of.along())[1]
        changes = slopes(kernel)
    assert device.launched
    assert_same(tangents, mx.jvp(of.results(kernel.reference), of.arrays, of.along())[1])
    assert_same(changes, slopes(kernel.reference))


@pytest.mark.parametrize("name", OWN)
def test_batches_of_a_launch_are_refused_and_those_of_the_definition_are_not(name: str) -> None:
    kernel, of, device = OWN[name], case(name), Launching()
    several = [mx.stack([array, array / 2]) for array in of.arrays]

    def batched(function: Callable[..., Any]) -> list[mx.array]:
        return [*mx.vmap(of.results(function))(*several), *mx.vmap(of.gradients(function))(*several)]

    with custom.using(device), settings.KERNELS.override("custom"):
        with pytest.raises(ValueError, match=r"\[Primitive::vmap\] Not implemented"):
            batched(kernel)
        device.launched.clear()
        with features.disabled("custom-metal"):
            assert_same(batched(kernel), batched(kernel.reference))
    assert not device.launched
