"""Metal's launcher without Metal: what is launched can be exported, not computed."""

from __future__ import annotations

from collections.abc import Sequence

from metal_candle.kernels import custom

import mlx.core as mx


class Exporting:
    """A back-end that leaves a Metal kernel in the graph, as on a Mac, without running it."""

    name = "metal"
    trusted = True

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        """The kernel's outputs, which cannot be evaluated."""
        found: list[mx.array] = custom.as_metal(program)(
            inputs=list(inputs),
            output_shapes=list(how.shapes),
            output_dtypes=list(how.dtypes),
            grid=how.grid,
            threadgroup=how.threadgroup,
            template=list(how.template),
            stream=mx.gpu,
        )
        return found
