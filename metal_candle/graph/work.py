"""The work of an operation, estimated from the shapes and dtypes of its inputs and result: the members of a record.

FLOPs are floating-point operations: a multiply-add is two, an elementary function (exp, log, tanh …), a division, a
comparison and a drawn number are one each; what a row needs once (the root in a norm) is left out. Bytes are what is
read and written if every input is read once and every result written once, whatever the caches hold.
``cost.py`` adds these up, and turns them into time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

if TYPE_CHECKING:
    from .operation import Meta, Metas

Work = Literal[
    "view",  # the same storage, looked at otherwise: no work
    "move",  # elements copied in order, or by rows
    "select",  # elements copied by ids, by strides or by a condition, or rows added
    "scatter",  # elements written or added where ids say
    "arithmetic",  # +, -, ·, /, comparisons
    "reduction",  # every element of the inputs gone through once
    "norm",  # several reductions of a row, and the row scaled
    "exponential",  # exp and what is made of it, log, powers
    "softmax",  # exponentials of rows, with their maxima and sums
    "elementary",  # functions that the C library computes one by one: sin, tanh, expm1
    "sort",  # comparisons of a sort
    "random",  # uniform numbers drawn
    "normal",  # normal numbers drawn
    "product",  # matrix products, which BLAS spreads over its threads
]
_NO_FLOPS = ("view", "move", "select")


def elements(*metas: Metas) -> int:
    """How many elements these results have together."""
    return sum(math.prod(meta.shape) for several in metas for meta in _each(several))


def size_in_bytes(*metas: Metas) -> int:
    """How many bytes these results take together."""
    return sum(math.prod(meta.shape) * meta.dtype.size_ for several in metas for meta in _each(several))


def _each(metas: Metas) -> Sequence[Meta]:
    # A Meta is a tuple too, of a shape and a dtype.
    return cast("Sequence[Meta]", (metas,) if hasattr(metas, "dtype") else metas)


class Estimated:
    """Base of ``Operation``: what its work is estimated to be. ``inputs`` and ``output`` are as ``infer`` has them.

    A record or a family says which ``work`` it does, and ``flops_per_element`` if that is not one; the methods follow
    from these two, and are overridden where a formula says it better.
    """

    work: ClassVar[Work] = "arithmetic"
    flops_per_element: ClassVar[int] = 1

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        """The work of one thread of MLX's CPU back-end: its kind, and for how many elements.

        Of a product that is what is done around it: BLAS, which has threads of its own, is not in here.
        """
        if self.work in ("view", "product"):
            return self.work, 0
        return self.work, elements(*inputs) if self.work == "reduction" else elements(output)

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        """Floating-point operations; 0 for views and for what only moves elements."""
        return 0 if self.work in _NO_FLOPS else self.flops_per_element * self.steps(inputs, output)[1]

    def traffic(self, inputs: Sequence[Metas], output: Metas) -> int:
        """Bytes read and written: of all inputs and the result; 0 for views."""
        return 0 if self.work == "view" else size_in_bytes(*inputs, output)

    def uses_blas(self) -> bool:
        """Whether most of its time goes to matrix products, which are spread over several threads already."""
        return self.work == "product"

    # The same for ``vjp``, of the gradients of the inputs that ``needs`` marks.

    def vjp_steps(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        """As ``steps``: by default those of the operation for each gradient."""
        if self.work == "view":
            count, result = elements(*_needed(inputs, needs)), elements(output)
            # A view's gradient is a view, padded with zeros for a part, summed for what was repeated.
            return ("view", 0) if count == result else ("move", count) if count > result else ("reduction", result)
        work, count = self.steps(inputs, output)
        return work, count * sum(needs)

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        """As ``flops``: by default those of the operation for each gradient."""
        if self.work == "view":
            work, count = self.vjp_steps(inputs, output, needs)
            return count if work == "reduction" else 0
        return self.flops(inputs, output) * sum(needs)

    def vjp_traffic(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        """As ``traffic``: of the cotangent, the inputs, the result and the gradients.

        What only moves elements needs neither its inputs nor its result for that.
        """
        gradients = _needed(inputs, needs)
        if self.work == "view" and self.vjp_steps(inputs, output, needs)[0] == "view":
            return 0
        read = (output,) if self.work in _NO_FLOPS else (output, *inputs, output)
        return size_in_bytes(*read, *gradients)


def _needed(inputs: Sequence[Metas], needs: Sequence[bool]) -> list[Metas]:
    return [meta for meta, need in zip(inputs, needs) if need]
