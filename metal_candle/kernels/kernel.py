"""What a kernel is: one function with a plain definition, faster variants of it, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .. import features, settings
from ..error import ArgumentValueError
from ..error.text import shown
from . import custom
from .own import Own
from .transforms import differentiable
from .variant import Gradients, Outputs, Several, Variant, differentiated_by_mlx


class Kernel:
    """A function ``mx.array -> mx.array`` that MLX lacks or does slower.

    - ``reference``: its plain MLX definition, taking the inputs and then the parameters.
    - ``select(*arguments)``: the variant for these arguments and the reason for it; ``None`` for the reference.
    - ``arity``: how many of the arguments are inputs, the others being parameters; an input may be ``None``.
    - ``own``: the variant that launches a kernel of ours on a GPU, asked before ``select``.
    - ``results``: how many results it gives; several are a tuple.

    Calling it is differentiable by MLX's own ``mx.grad``; ``forward`` and ``vjp`` are the two halves, for
    who does the reverse mode itself. ``METAL_CANDLE_KERNELS=reference``, or the feature ``custom-metal``
    switched off, replaces every variant by the reference; ``METAL_CANDLE_KERNELS=custom`` launches ours
    wherever it can. ``METAL_CANDLE_DEBUG=kernel`` logs each choice.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Several],
        select: Callable[..., tuple[Variant | None, str]],
        arity: int = 1,
        own: Own | None = None,
        results: int = 1,
    ) -> None:
        self.name = name
        self.reference = reference
        self.arity = arity
        self.own = own
        self.results = results
        self.last: tuple[str, str] | None = None
        self._select = select
        self._plain = differentiated_by_mlx("reference", reference)
        self._launched = None if own is None else own.variant(reference)
        self.__doc__ = reference.__doc__

    def choose(self, *arguments: Any) -> Variant:
        """The variant for these arguments. Its name and the reason are kept in ``last``."""
        plain, always, telling = _MODE.get()
        if plain is not None:
            variant, reason = self._plain, plain
        elif self._launched is None or (on := custom.backend()) is None:  # without another call: on the CPU it counts
            chosen, reason = self._select(*arguments)
            variant = self._plain if chosen is None else chosen
            if always and self.own is not None:
                reason = f"{reason}; not {self.own.name}: MLX computes on the CPU"
        else:
            variant, reason = self._on_a_device(on, always, *arguments)
        self.last = (variant.name, reason)
        if telling:
            shapes = [tuple(a.shape) for a in arguments if isinstance(a, mx.array)]
            settings.log("kernel", "%s %s: %s, %s", self.name, shapes, variant.name, reason)
        return variant

    def _on_a_device(self, on: custom.Backend, always: bool, *arguments: Any) -> tuple[Variant, str]:
        assert self.own is not None
        assert self._launched is not None
        ours, why = self.own.chosen(on, self.reference, always, *arguments)
        if ours:
            return self._launched, f"{on.name}: {why}"
        chosen, reason = self._select(*arguments)
        return chosen or self._plain, f"{reason}; not {self.own.name}: {why}"

    def forward(self, *arguments: Any) -> Outputs:
        """The result, then what ``vjp`` likes to find again. MLX must not differentiate through this."""
        return self.choose(*arguments).forward(*arguments)

    def vjp(
        self, cotangent: Any, inputs: Sequence[Any], outputs: Any, needs: Sequence[bool], *params: Any
    ) -> Gradients:
        """A gradient for each true entry of ``needs``, ``None`` for the others.

        ``outputs`` is what ``forward`` gave, or the result alone: what else is needed is then recomputed. Of several
        results ``cotangent`` is a tuple, with ``None`` for one that the loss does not use.
        """
        variant = self.choose(*inputs, *params)
        given = outputs if isinstance(outputs, tuple) else (outputs,)
        return variant.vjp(cotangent, tuple(inputs), given, tuple(needs), *params)

    def __call__(self, *arguments: Any) -> Any:
        """The result, differentiable by MLX to any order.

        Under ``mx.vmap`` a launch of ours raises ``ValueError``, as MLX has no batches of it: call the mapped function
        within ``features.disabled("custom-metal")``.
        """
        variant = self.choose(*arguments)
        where = tuple(i for i, a in enumerate(arguments) if isinstance(a, mx.array))
        constants = tuple(None if i in where else a for i, a in enumerate(arguments))
        function = differentiable(self, variant, where, constants)
        found = function(*[arguments[i] for i in where])
        return found[0] if self.results == 1 else tuple(found[: self.results])

    def launches(self, variant: Variant) -> bool:
        """Whether the variant is a launch of ours, which MLX can neither differentiate nor batch."""
        return variant is self._launched

    def __repr__(self) -> str:
        return f"Kernel({self.name})"


KINDS = ("auto", "reference", "custom")
"""What ``METAL_CANDLE_KERNELS`` takes."""


def _mode() -> tuple[str | None, bool, bool]:
    """Why every kernel is its reference, if so; whether ours is always launched; whether choices are logged."""
    kind, off = settings.KERNELS.value, features.switched_off()
    if kind not in KINDS:
        raise ArgumentValueError(f"{settings.KERNELS.name}: got {shown(kind)!r}; takes {', '.join(KINDS)}")
    plain = None
    if kind == "reference":
        plain = f"{settings.KERNELS.name}=reference"
    elif "custom-metal" in off:
        plain = "feature custom-metal is off"
    return plain, kind == "custom", "kernel" in settings.DEBUG.words


# Kernels ask at each call.
_MODE = settings.Derived(_mode, settings.KERNELS, settings.DISABLE, settings.DEBUG)


def launching() -> tuple[str | None, bool]:
    """The name of what launches our kernels in this context, ``None`` where nothing does; whether it always does."""
    on = custom.backend()
    if on is None:  # at once: a graph asks each time that it is computed
        return None, False
    plain, always, _ = _MODE.get()
    return (on.name, always) if plain is None else (None, False)


def on_cpu() -> bool:
    """Whether MLX computes on the CPU in this context."""
    # mx.stream() changes the default device too, so this is the stream in use.
    return mx.default_device().type is mx.cpu
