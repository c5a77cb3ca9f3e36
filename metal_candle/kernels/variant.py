"""One way to compute a kernel: its two halves, the result and the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import mlx.core as mx

Outputs = tuple[mx.array, ...]
Gradients = tuple[Union[mx.array, None], ...]
Several = Union[mx.array, tuple[mx.array, ...]]

_HALVES = (mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class Variant:
    """One way to compute a kernel.

    ``forward(*inputs, *params)`` gives the result, or several, then what ``vjp`` likes to find again.
    ``vjp(cotangent, inputs, outputs, needs, *params)`` gives one gradient per entry of ``needs``, ``None``
    where it is false; ``outputs`` is what ``forward`` gave. Of several results ``cotangent`` is a tuple, with ``None``
    for a result that the loss does not use.
    """

    name: str
    forward: Callable[..., Outputs]
    vjp: Callable[..., Gradients]


def differentiated_by_mlx(name: str, function: Callable[..., Several]) -> Variant:
    """A variant made of MLX operations, whose gradient is MLX's own. Several results are a tuple."""

    def forward(*arguments: Any) -> Outputs:
        return _tupled(function(*arguments))

    return Variant(name, forward, vjp_by_mlx(function))


def vjp_by_mlx(function: Callable[..., Several]) -> Callable[..., Gradients]:
    """The gradients of ``function`` as a variant's ``vjp``: MLX's own."""

    def vjp(
        cotangent: Any, inputs: tuple[Any, ...], outputs: Outputs, needs: tuple[bool, ...], *params: Any
    ) -> Gradients:
        arguments = (*inputs, *params)
        arrays = [i for i, a in enumerate(arguments) if isinstance(a, mx.array) or i < len(inputs)]
        wanted = [i for i, need in zip(arrays, needs) if need]
        if not wanted:
            return (None,) * len(needs)
        given = [arguments[i] for i in wanted]
        if isinstance(cotangent, tuple):
            used = [i for i, each in enumerate(cotangent) if each is not None]
            of_used = _only(_partial(function, arguments, wanted), used)
            _, found = mx.vjp(of_used, given, [cotangent[i] for i in used])
        else:
            _, found = mx.vjp(_partial(function, arguments, wanted), given, [cotangent])
        gradients = dict(zip(wanted, found))
        return tuple(gradients.get(i) for i in arrays[: len(needs)])

    return vjp


def distinct(arrays: Sequence[mx.array]) -> list[mx.array]:
    """The arrays as arrays of their own: of a function that gives one array twice ``mx.vjp`` takes one cotangent."""
    return [mx.contiguous(array) for array in arrays]


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


def _tupled(results: Several) -> Outputs:
    return results if isinstance(results, tuple) else (results,)


def _only(function: Callable[..., Any], used: Sequence[int]) -> Callable[..., list[mx.array]]:
    def of_used(*values: mx.array) -> list[mx.array]:
        results = function(*values)
        return distinct([results[i] for i in used])

    return of_used


def _partial(function: Callable[..., Any], arguments: Sequence[Any], wanted: Sequence[int]) -> Callable[..., Any]:
    def of_wanted(*values: mx.array) -> Any:
        full = list(arguments)
        for i, value in zip(wanted, values):
            full[i] = value
        return function(*full)

    return of_wanted
