"""What the records of optimizers' updates share: several variables updated as one flat array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ...dtype import DType
from ...error import ShapeMismatchError
from ..operation import Arrays, Meta, Metas, Operation
from ..work import Work, elements


def flat(arrays: Sequence[mx.array], dtype: mx.Dtype) -> mx.array:
    """The elements of all arrays, one after the other."""
    if len(arrays) == 1:
        return arrays[0].reshape(-1).astype(dtype)
    return mx.concatenate([array.reshape(-1).astype(dtype) for array in arrays])


def cut(whole: mx.array, like: Sequence[mx.array]) -> list[mx.array]:
    """Parts of a flat array with the shapes of ``like``, in its order."""
    if len(like) == 1:
        return [whole.reshape(like[0].shape)]
    parts, start = [], 0
    for array in like:
        parts.append(whole[start : start + array.size].reshape(array.shape))
        start += array.size
    return parts


class Parts(NamedTuple):
    """The inputs of an update by what they are, metas or arrays."""

    parameters: Sequence[Any]
    gradients: Sequence[Any]
    moments: Sequence[Any]
    rate: Any
    step: Any
    factor: Any


class Update(Operation, abstract=True):
    """One step of an optimizer for several parameters at once: a dozen calls in place of thousands.

    Inputs: the parameters; a gradient for each that ``present`` marks; the moments of all of them, each flat; scalars
    that change from step to step: the rate, which ``ratio`` multiplies, the number of the step, from 1, and for a
    ``scaled`` record a factor for the gradients. Results: the new parameters, then the new
    moments; a parameter without a gradient stays as it is. It is computed in F32, of F64 in F64, whatever the
    parameters' dtype; the moments are kept in that.
    """

    arity = None
    differentiable = False
    present: tuple[bool, ...]
    ratio: float
    scaled: bool

    def moments(self) -> int:
        """How many flat arrays of moments there are."""
        raise AssertionError(f"{self.key} declares no moments")

    def new(self, parameter: Any, gradient: Any, moments: Sequence[Any], rate: Any, step: Any) -> tuple[Any, ...]:
        """The new parameters and moments, all flat."""
        raise AssertionError(f"{self.key} declares no new")

    def parts(self, inputs: Sequence[Any]) -> Parts:
        """The inputs by what they are."""
        count, given = len(self.present), sum(self.present)
        scalars = count + given + self.moments()
        rest = iter(inputs[scalars:])
        return Parts(
            inputs[:count],
            inputs[count : count + given],
            inputs[count + given : scalars],
            next(rest),
            next(rest),
            next(rest) if self.scaled else None,
        )

    def infer(self, *inputs: Meta) -> Metas:
        parts = self.parts(inputs)
        given = iter(parts.gradients)
        for parameter, present in zip(parts.parameters, self.present):
            if present and (gradient := next(given)).shape != parameter.shape:
                raise ShapeMismatchError(
                    f"{self.key}: got a gradient {gradient.shape} for a parameter {parameter.shape}"
                )
        results = (*parts.parameters, *parts.moments)
        return results if len(results) > 1 else results[0]

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, self.flops_per_step() * elements(*self.parts(inputs).parameters)

    def flops_per_step(self) -> int:
        """Operations for each element of the parameters."""
        raise AssertionError(f"{self.key} declares no flops_per_step")

    def lower(self, *inputs: Any) -> Arrays:
        parts = self.parts(inputs)
        parameters, given = parts.parameters, iter(parts.gradients)
        dtype = working_dtype(parameters)
        gradient = flat([next(given) if here else mx.zeros_like(p) for p, here in zip(parameters, self.present)], dtype)
        if self.scaled:
            gradient = gradient * parts.factor.astype(dtype)
        old = flat(parameters, dtype), *parts.moments
        scalars = self.scaled_rate(parts.rate, dtype), parts.step.astype(dtype)
        results = self.new(old[0], gradient, parts.moments, *scalars)
        if not all(self.present):
            sizes = [mx.full((p.size,), here) for p, here in zip(parameters, self.present)]
            here = mx.concatenate(sizes)
            results = tuple(mx.where(here, a, b) for a, b in zip(results, old))
        new = [part.astype(p.dtype) for part, p in zip(cut(results[0], parameters), parameters)]
        return several([*new, *results[1:]])

    def scaled_rate(self, rate: mx.array, dtype: mx.Dtype) -> mx.array:
        """The rate of these parameters."""
        rate = rate.astype(dtype)
        return rate if self.ratio == 1 else rate * self.ratio


def working_dtype(parameters: Sequence[mx.array]) -> mx.Dtype:
    """What an update of these is computed in: F64 for F64, else F32."""
    return mx.float64 if parameters[0].dtype == mx.float64 else mx.float32


def several(results: Sequence[mx.array]) -> Arrays:
    """A record's results: one by itself, several as a tuple."""
    return tuple(results) if len(results) > 1 else results[0]


def widest(metas: Sequence[Meta]) -> DType:
    """F64 if one of them is, else F32."""
    return DType.F64 if any(meta.dtype is DType.F64 for meta in metas) else DType.F32
