"""The record of a piece of graph that is computed again where its gradient is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..operation import Arrays, Gradients, Meta, Metas, Operation
from ..work import Work
from .random import KEY

if TYPE_CHECKING:
    from ..body import Body


class Checkpoint(Operation):
    """What a body computes of its inputs; its gradient computes the body again instead of keeping what is in between.

    Several results if the body has several. Chen et al. 2016, https://arxiv.org/abs/1604.06174.
    """

    arity = None
    work = "product"
    body: Body

    def name(self) -> str:
        return "checkpoint"

    def infer(self, *inputs: Meta) -> Metas:
        metas = self.body.metas()
        return metas if len(metas) > 1 else metas[0]

    def lower(self, *inputs: Any) -> Arrays:
        found = self.body.forward().run(inputs)
        return tuple(found) if len(found) > 1 else found[0]

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        cotangents = cotangent if isinstance(cotangent, tuple) else (cotangent,)
        given = [each for each in cotangents if each is not None]
        replay, there = self.body.backward(tuple(needs), tuple(each is not None for each in cotangents))
        gradients = replay.run([*_after(inputs, given), *given])
        # All before anything that follows: MLX would leave those of weights, which nobody waits for, to the end, and
        # keep what they are made of.
        found = iter(mx.depends(gradients, gradients) if len(gradients) > 1 else gradients)
        known = iter(there)
        return tuple([next(found) if need and next(known) else None for need in needs])

    def is_lasting(self) -> bool:
        return all(step.operation.is_lasting() for step in self.body.steps)

    def uses_blas(self) -> bool:
        return any(step.operation.uses_blas() for step in self.body.steps)

    # Estimates: the sums over the body, and for the gradient once more what is computed again.

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return "arithmetic", sum(step.operation.steps(metas, step.meta)[1] for step, metas in self.body.described())

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return sum(step.operation.flops(metas, step.meta) for step, metas in self.body.described())

    def traffic(self, inputs: Sequence[Metas], output: Metas) -> int:
        return sum(step.operation.traffic(metas, step.meta) for step, metas in self.body.described())

    def vjp_steps(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        work, count = self.steps(inputs, output)
        return work, 3 * count

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return self.flops(inputs, output) + sum(
            step.operation.vjp_flops(metas, step.meta, marks) for step, metas, marks in self.body.differentiated(needs)
        )

    def vjp_traffic(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return self.traffic(inputs, output) + sum(
            step.operation.vjp_traffic(metas, step.meta, marks)
            for step, metas, marks in self.body.differentiated(needs)
        )


def _after(inputs: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """The inputs, to be used only when the cotangents ``given`` are there: MLX would else compute the body early.

    Ids stay as they are: operations look at their values, which would compute everything before. Keys do not.
    """
    tied = [x for x in inputs if _is_tied(x)]
    later = iter(mx.depends(tied, list(given)) if tied and given else tied)
    return [next(later) if _is_tied(x) else x for x in inputs]


def _is_tied(x: Any) -> bool:
    return isinstance(x, mx.array) and (
        mx.issubdtype(x.dtype, mx.floating) or (x.dtype, x.shape) == (KEY.dtype.mlx_, tuple(KEY.shape))
    )
