"""What MLX generates for a launch, which it prints while the launch is exported. Needs no GPU."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from metal_candle.kernels import custom

import mlx.core as mx


def printed(program: custom.Program, inputs: Sequence[mx.array], launch: custom.Launch) -> str:
    """The text that MLX prints for a launch while it is exported, read from the process's standard output."""
    kernel = custom.as_metal(program)

    def call(*arrays: mx.array) -> list[mx.array]:
        made: list[mx.array] = kernel(
            inputs=list(arrays),
            output_shapes=list(launch.shapes),
            output_dtypes=list(launch.dtypes),
            grid=launch.grid,
            threadgroup=launch.threadgroup,
            template=list(launch.template),
            stream=mx.gpu,
            verbose=True,
        )
        return made

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as captured:
        kept = os.dup(1)
        os.dup2(captured.fileno(), 1)
        try:
            mx.export_function(str(Path(folder) / "call.mlxfn"), call, *inputs)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        captured.seek(0)
        said = captured.read().decode()
    found = re.fullmatch(rf"Generated source code for `{re.escape(program.name)}`:\n```\n(.*)\n```\n", said, re.DOTALL)
    assert found is not None, said
    return found[1]
