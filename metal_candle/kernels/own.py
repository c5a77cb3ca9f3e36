"""A kernel's variant that is a launch of ours: what it can take, when it is used, and its trial on the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from . import custom
from .samples import normal
from .variant import Gradients, Outputs, Several, Variant, vjp_by_mlx

# Of the largest value: what a wrong kernel exceeds at once and rounding never does.
TRIAL = {mx.float32: 1e-3, mx.float16: 2e-2, mx.bfloat16: 1e-1}
# Added to the largest value, for results that are 0 but for rounding.
FLOOR = 1e-2
UNMEASURED = "unmeasured"
# Arguments, as far as a choice depends on them, whose choice is kept: one look-up to the three of a rule.
KEPT = 4096


@dataclass(frozen=True)
class Trial:
    """A small launch that compiles the same instantiation as some arguments would.

    ``key`` tells apart what a trial does not stand for: instantiations, threadgroups, ways through the program; see
    ``samples``. ``arguments`` are small ones that share it.
    """

    key: Hashable
    arguments: Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Own:
    """The variant of a kernel that launches a program of ours.

    - ``forward(*arguments)`` launches it.
    - ``fits(*arguments)``: why the program cannot take the arguments, ``None`` if it can.
    - ``wins(*arguments)``: whether it is used, and why: with the row of ``benchmarks/results.csv`` that shows it, or
      "unmeasured" and what it is derived from. ``METAL_CANDLE_KERNELS=custom`` does not ask.
    - ``trial(*arguments)``: the launch that is tried first on a device. One that fails there, or is wrong, is not used.
    - ``vjp``: gradients; those of the reference if it is ``None``. They are tried on the same arguments, when one is
      first asked for: a program that only infers does not wait for their compilation.

    What ``fits``, ``wins`` and ``trial`` answer depends on shapes, dtypes and parameters alone: a choice is kept.
    """

    name: str
    forward: Callable[..., Outputs]
    fits: Callable[..., str | None]
    wins: Callable[..., tuple[bool, str]]
    trial: Callable[..., Trial]
    vjp: Callable[..., Gradients] | None = None
    _tried: dict[Hashable, str | None] = field(default_factory=dict, repr=False, compare=False)
    _chosen: dict[Hashable, tuple[bool, str]] = field(default_factory=dict, repr=False, compare=False)

    def variant(self, reference: Callable[..., Several]) -> Variant:
        """As a variant of the kernel that ``reference`` defines."""
        of_reference = vjp_by_mlx(reference)
        own = self.vjp
        if own is None:
            return Variant(self.name, self.forward, of_reference)

        def vjp(
            cotangent: Any, inputs: tuple[Any, ...], outputs: Outputs, needs: tuple[bool, ...], *params: Any
        ) -> Gradients:
            def difference(arguments: tuple[Any, ...]) -> str | None:
                return _difference_of_gradients(self.forward, own, reference, len(inputs), arguments)

            on = custom.backend()
            failed = on is None or self._failed(on, "its gradient", difference, *inputs, *params) is not None
            return (of_reference if failed else own)(cotangent, inputs, outputs, needs, *params)

        return Variant(self.name, self.forward, vjp)

    def chosen(
        self, on: custom.Backend, reference: Callable[..., Several], always: bool, *arguments: Any
    ) -> tuple[bool, str]:
        """Whether ``on`` launches it for these arguments, and why."""
        key = (on.name, on.trusted, always, *[(a.shape, a.dtype) if isinstance(a, mx.array) else a for a in arguments])
        found = self._chosen.get(key)
        if found is None:
            if len(self._chosen) >= KEPT:
                self._chosen.clear()
            self._chosen[key] = found = self._choose(on, reference, always, *arguments)
        return found

    def _choose(
        self, on: custom.Backend, reference: Callable[..., Several], always: bool, *arguments: Any
    ) -> tuple[bool, str]:
        unfit = self.fits(*arguments)
        if unfit is not None:
            return False, unfit
        wins, reason = (True, "METAL_CANDLE_KERNELS=custom") if always else self.wins(*arguments)
        if not wins:
            return False, reason
        failed = self._failed(on, "", lambda given: _difference(self.forward, reference, given), *arguments)
        return (True, reason) if failed is None else (False, failed)

    def _failed(
        self, on: custom.Backend, what: str, difference: Callable[[tuple[Any, ...]], str | None], *arguments: Any
    ) -> str | None:
        """Why the trial on this device failed, ``None`` if it did not. It runs once."""
        if on.trusted:
            return None
        trial = self.trial(*arguments)
        key = (on.name, what, trial.key)
        if key not in self._tried:
            self._tried[key] = failed = difference(trial.arguments())
            if failed is not None:
                of = f" of {what}" if what else ""
                warnings.warn(
                    f"{self.name}: its trial{of} on {on.name} {failed}; MLX's operations are used instead",
                    RuntimeWarning,
                    stacklevel=2,
                )
        known = self._tried[key]
        return None if known is None else f"its trial on {on.name} {known}"


def _difference_of_gradients(
    forward: Callable[..., Outputs],
    vjp: Callable[..., Gradients],
    reference: Callable[..., Several],
    arity: int,
    arguments: tuple[Any, ...],
) -> str | None:
    inputs, params = arguments[:arity], arguments[arity:]
    slots = [*inputs, *[value for value in params if isinstance(value, mx.array)]]
    needs = tuple(isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating) for value in slots)
    arrays = [value for value in slots if isinstance(value, mx.array)]
    results = reference(*arguments)
    # Independent of the results: along those some gradients are 0, as that of a norm is.
    if isinstance(results, tuple):
        cotangent: Several = tuple(normal(r.shape, r.dtype, 90 + i) for i, r in enumerate(results))
    else:
        cotangent = normal(results.shape, results.dtype, 90)

    def launched(*_: Any) -> Outputs:
        return tuple(g for g in vjp(cotangent, inputs, forward(*arguments), needs, *params) if g is not None)

    def defined(*_: Any) -> Outputs:
        found = vjp_by_mlx(reference)(cotangent, inputs, (), needs, *params)
        return tuple(g for g in found if g is not None)

    # Of a wide array beside halves the gradient is as rounded as theirs.
    return _difference(launched, defined, (), max(TRIAL[array.dtype] for array in arrays if array.dtype in TRIAL))


def _difference(
    forward: Callable[..., Outputs], reference: Callable[..., Several], arguments: tuple[Any, ...], near: float = 0.0
) -> str | None:
    expected = reference(*arguments)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    try:
        results = forward(*arguments)[: len(wanted)]
        mx.eval(results)
    except (RuntimeError, ValueError) as error:
        # What a compiler says may be a page: its first line names the kernel, the first with "error" the mistake.
        lines = str(error).splitlines() or [type(error).__name__]
        return f"failed: {next((line for line in lines if 'error' in line), lines[0]).strip()}"
    for got, want in zip(results, wanted):
        if got.shape != want.shape:
            return f"gives {list(got.shape)} where {list(want.shape)} is right"
        wide, exact = (np.array(array.astype(mx.float32)) for array in (got, want))
        off, allowed = (
            float(np.abs(wide - exact).max()),
            max(near, TRIAL[want.dtype]) * (FLOOR + float(np.abs(exact).max())),
        )
        # Not "more than allowed", which NaN would pass.
        if not off <= allowed:
            return f"is off by {off:g} where {allowed:g} is allowed"
    return None
