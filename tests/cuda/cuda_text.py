"""The text that MLX for CUDA writes around the body of a kernel, by its rules (0.32.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metal_candle.kernels import custom

import mlx.core as mx

Given = tuple[tuple[int, ...], mx.Dtype]
"""An input as the generator sees it: shape and dtype."""

TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.float32: "float",
    mx.float64: "double",
    mx.complex64: "complex64_t",
}

SPELLED = {mx.float16: "float16_t", mx.bfloat16: "bfloat16_t"}
"""In names MLX keeps to what Metal calls the halves."""

INCLUDES = '\n#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n\n'
OPEN = "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n"
CLOSE = "\n} // namespace mlx::core::cu\n"
# What follows a pointer whose <name>_shape and so on the body mentions. An array goes by value, not as a pointer.
DESCRIPTIONS = {
    "shape": "    const __grid_constant__ Shape ",
    "strides": "    const __grid_constant__ Strides ",
    "ndim": "    const __grid_constant__ int ",
}


class Text(NamedTuple):
    """A kernel's name, what stands before its function, and the function."""

    name: str
    prologue: str
    function: str

    @property
    def whole(self) -> str:
        """What MLX hands to the compiler."""
        return self.prologue + self.function + CLOSE


def together(texts: Sequence[Text]) -> tuple[list[str], str]:
    """Several kernels with one prologue as one text, and their names there: MLX's, with a number to be distinct."""
    names = [f"{text.name}_{i}" for i, text in enumerate(texts)]
    renamed = [text.function.replace(f" {text.name}(", f" {name}(", 1) for text, name in zip(texts, names)]
    return names, texts[0].prologue + "".join(renamed) + CLOSE


def text_of(program: custom.Program, given: Sequence[Given], how: custom.Launch) -> Text:
    """The text for inputs of these shapes and dtypes."""
    # It tells template arguments apart, not dtypes: to its cache MLX adds a hash of the text.
    name = f"custom_kernel_{program.name}" + "".join(f"_{_spelled(value)}" for _, value in how.template)
    parameters = []
    for each, (shape, dtype) in zip(program.inputs, given):
        parameters.append(f"    const {TYPES[dtype]}* {each}")
        if shape:
            parameters += [
                f"{kind}{each}_{what}" for what, kind in DESCRIPTIONS.items() if f"{each}_{what}" in program.body
            ]
    parameters += [f"    {TYPES[dtype]}* {each}" for each, dtype in zip(program.outputs, how.dtypes)]
    constants = "".join(f"  {_constant(each, value)};\n" for each, value in how.template)
    function = (
        f"__global__ void {name}(\n"
        + ",\n".join(parameters)
        + ") {\n"
        + constants
        + ("\n" if constants else "")
        + program.body
        + "\n}\n"
    )
    return Text(name, INCLUDES + custom.cuda_header(program) + OPEN, function)


def _spelled(value: bool | int | mx.Dtype) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value) if isinstance(value, int) else SPELLED.get(value, TYPES[value])


def _constant(name: str, value: bool | int | mx.Dtype) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()}"
    if isinstance(value, int):
        return f"constexpr int {name} = {value}"
    return f"using {name} = {TYPES[value]}"
