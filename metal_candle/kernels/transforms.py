"""MLX's transformations of a kernel: gradients to any order, tangents, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from .variant import Gradients, Outputs, Several, Variant, vjp_by_mlx

if TYPE_CHECKING:
    from .kernel import Kernel


@lru_cache(maxsize=1024)
def differentiable(
    kernel: Kernel, variant: Variant, where: tuple[int, ...], constants: tuple[Any, ...]
) -> Callable[..., Outputs]:
    """The variant as an ``mx.custom_function`` of the arrays at ``where`` among the constants."""
    count, results = len(where), kernel.results
    launches = kernel.launches(variant)
    of_reference = vjp_by_mlx(kernel.reference)

    def fill(arrays: Sequence[mx.array]) -> list[Any]:
        full = list(constants)
        for i, array in zip(where, arrays):
            full[i] = array
        return full

    def plain(*arrays: mx.array) -> list[mx.array]:
        return _listed(kernel.reference(*fill(arrays)))

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

    @mx.custom_function
    def function(*arrays: mx.array) -> Outputs:
        if not launches:
            return variant.forward(*fill(arrays))
        # MLX asks what lies between for its tangents too, which a launch has not, unless it ends there.
        return variant.forward(*fill([mx.stop_gradient(array) for array in arrays]))[:results]

    # A second derivative goes through the reference: what the variant saved carries no gradient.
    @mx.custom_function
    def backward(*given: mx.array) -> Outputs:
        return gradients(variant.vjp, given)

    @backward.vjp
    def _(given: Any, cotangents: Any, outputs: Any) -> Outputs:
        split = count + results
        _, found = mx.vjp(
            lambda *values: list(gradients(of_reference, values)), list(given[:split]), _listed(cotangents)
        )
        return (*found, *[mx.zeros_like(saved) for saved in given[split:]])

    @function.vjp
    def _(arrays: Any, cotangents: Any, outputs: Any) -> Any:
        found = cast(Outputs, backward(*_listed(arrays), *_listed(cotangents)[:results], *_listed(outputs)))
        return found if count > 1 else found[0]

    # Of every variant: mx.addmm's own tangents leave out its factors alpha and beta.
    @function.jvp
    def _(arrays: Any, tangents: Any) -> Any:
        given = _listed(arrays)
        along = [mx.zeros_like(a) if t is None else t for a, t in zip(given, _listed(tangents))]
        return tuple(mx.jvp(plain, given, along)[1])

    if launches:

        @function.vmap
        def _(arrays: Any, axes: Any) -> Any:
            placed = tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)
            found = _listed(mx.vmap(plain, in_axes=placed)(*_listed(arrays)))
            return tuple(found), (0,) * len(found)

    return cast(Callable[..., Outputs], function)


def _or_zeros(gradient: mx.array | None, like: mx.array) -> mx.array:
    return mx.zeros_like(like) if gradient is None else gradient


def _listed(values: Several | list[mx.array]) -> list[mx.array]:
    return [values] if isinstance(values, mx.array) else list(values)
