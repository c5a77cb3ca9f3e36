"""The record of soft-capping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.softcap import softcap
from ..operation import Gradients, Sample
from .elementwise import ANY_SHAPE, UnaryFloat


class Softcap(UnaryFloat):
    """cap · tanh(x / cap), between -cap and cap. Gemma Team 2024, https://arxiv.org/abs/2408.00118."""

    samples = (
        *(Sample(sample.shapes, (0.75,)) for sample in ANY_SHAPE),
        Sample(((3, 31),), (30.0,), low=-99.0, high=99.0),
    )
    work = "elementary"
    flops_per_element = 3
    cap: float

    def lower(self, x: mx.array) -> mx.array:
        return softcap.forward(x, self.cap)[0]

    @staticmethod
    def numpy(x: Any, cap: float) -> Any:
        return cap * np.tanh(x / cap)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return softcap.vjp(cotangent, inputs, output, needs, self.cap)
