"""What a kernel is: one function with a plain definition, faster variants of it, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Union, cast

import mlx.core as mx

from .. import features, settings

Outputs = tuple[mx.array, ...]
Gradients = tuple[Union[mx.array, None], ...]

_HALVES = (mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class Variant:
    """One way to compute a kernel.

    ``forward(*inputs, *params)`` gives the result, then what ``vjp`` likes to find again.
    ``vjp(cotangent, inputs, outputs, needs, *params)`` gives one gradient per entry of ``needs``, ``None``
    where it is false; ``outputs`` is what ``forward`` gave.
    """

    name: str
    forward: Callable[..., Outputs]
    vjp: Callable[..., Gradients]


class Kernel:
    """A function ``mx.array -> mx.array`` that MLX lacks or does slower.

    - ``reference``: its plain MLX definition, taking the inputs and then the parameters.
    - ``arity``: how many of the arguments are inputs, the others being parameters; an input may be ``None``.
    - ``select(*arguments)``: the variant for these arguments and the reason for it; ``None`` for the reference.
    - ``recompute(variant, *arguments)``: what ``vjp`` uses of ``outputs`` if it is given the result only.

    Calling it is differentiable by MLX's own ``mx.grad``; ``forward`` and ``vjp`` are the two halves, for
    who does the reverse mode itself. ``METAL_CANDLE_KERNELS=reference``, or the feature ``custom-metal``
    switched off, replaces every variant by the reference. ``METAL_CANDLE_DEBUG=kernel`` logs each choice.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., mx.array],
        select: Callable[..., tuple[Variant | None, str]],
        arity: int = 1,
    ) -> None:
        self.name = name
        self.reference = reference
        self.arity = arity
        self.last: tuple[str, str] | None = None
        self._select = select
        self._plain = differentiated_by_mlx("reference", reference)
        self.__doc__ = reference.__doc__

    def choose(self, *arguments: Any) -> Variant:
        """The variant for these arguments. Its name and the reason are kept in ``last``."""
        plain, telling = _MODE.get()
        if plain is not None:
            variant, reason = self._plain, plain
        else:
            chosen, reason = self._select(*arguments)
            variant = chosen or self._plain
        self.last = (variant.name, reason)
        if telling:
            shapes = [tuple(a.shape) for a in arguments if isinstance(a, mx.array)]
            settings.log("kernel", "%s %s: %s, %s", self.name, shapes, variant.name, reason)
        return variant

    def forward(self, *arguments: Any) -> Outputs:
        """The result, then what ``vjp`` likes to find again. MLX must not differentiate through this."""
        return self.choose(*arguments).forward(*arguments)

    def vjp(
        self, cotangent: mx.array, inputs: Sequence[Any], outputs: Any, needs: Sequence[bool], *params: Any
    ) -> Gradients:
        """A gradient for each true entry of ``needs``, ``None`` for the others.

        ``outputs`` is what ``forward`` gave, or the result alone: what else is needed is then recomputed.
        """
        variant = self.choose(*inputs, *params)
        given = outputs if isinstance(outputs, tuple) else (outputs,)
        return variant.vjp(cotangent, tuple(inputs), given, tuple(needs), *params)

    def __call__(self, *arguments: Any) -> mx.array:
        """The result, differentiable by MLX to any order."""
        variant = self.choose(*arguments)
        where = tuple(i for i, a in enumerate(arguments) if isinstance(a, mx.array))
        constants = tuple(None if i in where else a for i, a in enumerate(arguments))
        function = _differentiable(self, variant, where, constants)
        return function(*[arguments[i] for i in where])[0]

    def __repr__(self) -> str:
        return f"Kernel({self.name})"


def _mode() -> tuple[str | None, bool]:
    """Why every kernel is its reference, if so, and whether choices are logged."""
    plain, off = None, features.switched_off()
    if settings.KERNELS.value == "reference":
        plain = f"{settings.KERNELS.name}=reference"
    elif "custom-metal" in off:
        plain = "feature custom-metal is off"
    return plain, "kernel" in settings.DEBUG.words


# Kernels ask at each call.
_MODE = settings.Derived(_mode, settings.KERNELS, settings.DISABLE, settings.DEBUG)


def on_cpu() -> bool:
    """Whether MLX computes on the CPU in this context."""
    # mx.stream() changes the default device too, so this is the stream in use.
    return mx.default_device().type is mx.cpu


def differentiated_by_mlx(name: str, function: Callable[..., mx.array]) -> Variant:
    """A variant made of MLX operations, whose gradient is MLX's own."""

    def forward(*arguments: Any) -> Outputs:
        return (function(*arguments),)

    def vjp(
        cotangent: mx.array, inputs: tuple[Any, ...], outputs: Outputs, needs: tuple[bool, ...], *params: Any
    ) -> Gradients:
        arguments = (*inputs, *params)
        arrays = [i for i, a in enumerate(arguments) if isinstance(a, mx.array) or i < len(inputs)]
        wanted = [i for i, need in zip(arrays, needs) if need]
        if not wanted:
            return (None,) * len(needs)
        _, found = mx.vjp(_partial(function, arguments, wanted), [arguments[i] for i in wanted], [cotangent])
        gradients = dict(zip(wanted, found))
        return tuple(gradients.get(i) for i in arrays[: len(needs)])

    return Variant(name, forward, vjp)


def through_float32(variant: Variant) -> Variant:
    """``variant`` for halves: computed in float32, the result and the gradients rounded once."""

    def forward(*arguments: Any) -> Outputs:
        result, *saved = variant.forward(*[_widen(a) for a in arguments])
        return (result.astype(arguments[0].dtype), *saved)

    def vjp(
        cotangent: mx.array, inputs: tuple[Any, ...], outputs: Outputs, needs: tuple[bool, ...], *params: Any
    ) -> Gradients:
        wide = (_widen(outputs[0]), *outputs[1:])
        gradients = variant.vjp(
            _widen(cotangent), tuple(_widen(a) for a in inputs), wide, needs, *[_widen(p) for p in params]
        )
        arrays = [*inputs, *[p for p in params if isinstance(p, mx.array)]]
        return tuple(g if g is None else g.astype(a.dtype) for g, a in zip(gradients, arrays))

    return Variant(f"{variant.name} in float32", forward, vjp)


def is_half(array: mx.array) -> bool:
    """Whether the elements are float16 or bfloat16."""
    return array.dtype in _HALVES


def _widen(argument: Any) -> Any:
    return argument.astype(mx.float32) if isinstance(argument, mx.array) and is_half(argument) else argument


def _partial(
    function: Callable[..., mx.array], arguments: Sequence[Any], wanted: Sequence[int]
) -> Callable[..., mx.array]:
    def of_wanted(*values: mx.array) -> mx.array:
        full = list(arguments)
        for i, value in zip(wanted, values):
            full[i] = value
        return function(*full)

    return of_wanted


@lru_cache(maxsize=1024)
def _differentiable(
    kernel: Kernel, variant: Variant, where: tuple[int, ...], constants: tuple[Any, ...]
) -> Callable[..., Outputs]:
    """The variant as an ``mx.custom_function`` of the arrays at ``where`` among the constants."""

    def fill(arrays: Sequence[mx.array]) -> list[Any]:
        full = list(constants)
        for i, array in zip(where, arrays):
            full[i] = array
        return full

    def gradients(vjp: Callable[..., Gradients], arrays: Sequence[mx.array], *given: Any) -> Outputs:
        full = fill(arrays)
        cotangent, outputs = given
        # An input that is None has a place in needs, a parameter only if it is an array.
        slots = [*range(kernel.arity), *[i for i in where if i >= kernel.arity]]
        needs = tuple(i in where and mx.issubdtype(full[i].dtype, mx.floating) for i in slots)
        inputs, params = tuple(full[: kernel.arity]), full[kernel.arity :]
        found = dict(zip(slots, vjp(cotangent, inputs, outputs, needs, *params)))
        return tuple(_or_zeros(found.get(i), full[i]) for i in where)

    @mx.custom_function
    def function(*arrays: mx.array) -> Outputs:
        return variant.forward(*fill(arrays))

    count = len(where)

    # A second derivative goes through the reference: what the variant saved carries no gradient.
    @mx.custom_function
    def backward(*given: mx.array) -> Outputs:
        return gradients(variant.vjp, given[:count], given[count], tuple(given[count + 1 :]))

    def of_reference(*given: mx.array) -> list[mx.array]:
        plain = differentiated_by_mlx("reference", kernel.reference)
        return list(gradients(plain.vjp, given[:count], given[count], ()))

    @backward.vjp
    def _(given: Any, cotangents: Any, outputs: Any) -> Outputs:
        _, found = mx.vjp(of_reference, list(given[: count + 1]), _listed(cotangents))
        return (*found, *[mx.zeros_like(saved) for saved in given[count + 1 :]])

    @function.vjp
    def _(arrays: Any, cotangents: Any, outputs: Any) -> Any:
        found = cast(Outputs, backward(*_listed(arrays), cotangents[0], *outputs))
        return found if count > 1 else found[0]

    return cast(Callable[..., Outputs], function)


def _or_zeros(gradient: mx.array | None, like: mx.array) -> mx.array:
    return mx.zeros_like(like) if gradient is None else gradient


def _listed(values: Any) -> list[mx.array]:
    return [values] if isinstance(values, mx.array) else list(values)
