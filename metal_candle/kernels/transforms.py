"""MLX's transformations of a kernel: gradients to any order, tangents, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from .variant import Gradients, Outputs, Variant, distinct, vjp_by_mlx

if TYPE_CHECKING:
    from .kernel import Kernel


@lru_cache(maxsize=1024)
def differentiable(
    kernel: Kernel, variant: Variant, where: tuple[int, ...], constants: tuple[Any, ...]
) -> Callable[..., Outputs]:
    """The variant as an ``mx.custom_function`` of the arrays at ``where`` among the constants."""
    count, results = len(where), kernel.results
    of_reference = vjp_by_mlx(kernel.reference)

    def fill(arrays: Sequence[mx.array]) -> list[Any]:
        full = list(constants)
        for i, array in zip(where, arrays):
            full[i] = array
        return full

    def plain(*arrays: mx.array) -> list[mx.array]:
        return _listed(kernel.reference(*fill([_held(array) for array in arrays])))

    def gradients(vjp: Callable[..., Gradients], given: Sequence[mx.array]) -> Outputs:
        """Those of ``given``: the arrays, the cotangents, the outputs."""
        full = fill(given[:count])
        cotangents, outputs = tuple(given[count : count + results]), tuple(given[count + results :])
        # An input that is None has a place in needs, a parameter only if it is an array.
        slots = [*range(kernel.arity), *[i for i in where if i >= kernel.arity]]
        needs = tuple(i in where and mx.issubdtype(full[i].dtype, mx.floating) for i in slots)
        inputs, params = tuple(full[: kernel.arity]), full[kernel.arity :]
        found = vjp(cotangents if results > 1 else cotangents[0], inputs, outputs, needs, *params)
        by_slot = dict(zip(slots, found))
        return tuple(_or_zeros(by_slot.get(i), full[i]) for i in where)

    # MLX asks what lies within for its tangents too, unless it ends there: a launch has none, nor has a view of bits.
    @mx.custom_function
    def function(*arrays: mx.array) -> Outputs:
        return variant.forward(*fill([mx.stop_gradient(array) for array in arrays]))

    # A second derivative goes through the reference: what the variant saved carries no gradient.
    @mx.custom_function
    def backward(*given: mx.array) -> Outputs:
        return gradients(variant.vjp, [mx.stop_gradient(array) for array in given])

    def defined(*given: mx.array) -> list[mx.array]:
        return distinct(gradients(of_reference, [_held(array) for array in given]))

    split = count + results

    @backward.vjp
    def _(given: Any, cotangents: Any, outputs: Any) -> Outputs:
        _, found = mx.vjp(defined, list(given[:split]), _listed(cotangents))
        return (*found, *[mx.zeros_like(saved) for saved in given[split:]])

    @backward.jvp
    def _(given: Any, tangents: Any) -> Any:
        return tuple(mx.jvp(defined, list(given[:split]), _along(given[:split], tangents))[1])

    @function.vjp
    def _(arrays: Any, cotangents: Any, outputs: Any) -> Any:
        found = cast(Outputs, backward(*_listed(arrays), *_listed(cotangents)[:results], *_listed(outputs)))
        return found if count > 1 else found[0]

    # Without rules of their own, what is mapped has the gradients of the body, which ends at its inputs.
    @function.vmap
    def _(arrays: Any, axes: Any) -> Any:
        def of_one(*given: mx.array) -> list[mx.array]:
            return [*plain(*given), *variant.forward(*fill(given))[results:]]

        return _mapped(of_one, _listed(arrays), _listed(axes))

    @backward.vmap
    def _(given: Any, axes: Any) -> Any:
        return _mapped(defined, given[:split], axes[:split])

    # Of every variant: mx.addmm's own tangents leave out its factors alpha and beta.
    @function.jvp
    def _(arrays: Any, tangents: Any) -> Any:
        given = _listed(arrays)
        return tuple(mx.jvp(plain, given, _along(given, _listed(tangents)))[1])

    return cast(Callable[..., Outputs], function)


def _held(array: mx.array) -> mx.array:
    """Without gradient where it is an index: MLX refuses even to look for one."""
    return array if mx.issubdtype(array.dtype, mx.inexact) else mx.stop_gradient(array)


def _along(given: Sequence[mx.array], tangents: Sequence[mx.array | None]) -> list[mx.array]:
    return [mx.zeros_like(a) if t is None else t for a, t in zip(given, tangents)]


def _mapped(
    function: Callable[..., list[mx.array]], arrays: Sequence[mx.array], axes: Sequence[int | None]
) -> tuple[Outputs, tuple[int, ...]]:
    if all(axis is None for axis in axes):
        found = function(*arrays)
        return tuple(found), (-1,) * len(found)
    found = list(mx.vmap(function, in_axes=tuple(axes))(*arrays))
    return tuple(found), (0,) * len(found)


def _or_zeros(gradient: mx.array | None, like: mx.array) -> mx.array:
    return mx.zeros_like(like) if gradient is None else gradient


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (tuple, list)) else [values]
