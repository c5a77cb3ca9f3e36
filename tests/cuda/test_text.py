"""Our text of a kernel is the one that MLX for CUDA writes."""

from __future__ import annotations

from metal_candle.kernels import custom

import cuda_text
import mlx.core as mx
import mlx_library
import pytest
from compilation import available
from given import Given, how
from instantiations import instantiations

BODY = "y[0] = x_shape[0] + x_ndim + one_shape[0];"
PROGRAM = Given("sample", ("x", "one", "eps"), ("y", "z"), body=BODY, header="H\n")
TEXT = """
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

{header}H
namespace mlx::core::cu {{

namespace cg = cooperative_groups;

__global__ void custom_kernel_sample_float16_t_t_-3(
    const __half* x,
    const __grid_constant__ Shape x_shape,
    const __grid_constant__ int x_ndim,
    const int32_t* one,
    const float* eps,
    __nv_bfloat16* y,
    float* z) {{
  using T = __half;
  constexpr bool FLAG = true;
  constexpr int N = -3;

{body}
}}

}} // namespace mlx::core::cu
"""


def test_parameters_constants_and_what_is_around_them() -> None:
    template: custom.Template = (("T", mx.float16), ("FLAG", True), ("N", -3))
    launch = how(((2,), mx.bfloat16), ((3,), mx.float32), template=template)
    # Of an array without dims there is no shape.
    text = cuda_text.text_of(PROGRAM, [((4, 5), mx.float16), ((), mx.int32), ((1,), mx.float32)], launch)
    assert text.whole == TEXT.format(header=custom.source("as_cuda.h"), body=BODY)
    assert text.name == "custom_kernel_sample_float16_t_t_-3"


def test_several_in_one_text_keep_their_functions() -> None:
    launch = how(((2,), mx.float32), ((3,), mx.float32))
    texts = [cuda_text.text_of(PROGRAM, [((4,), dtype)] * 3, launch) for dtype in (mx.float32, mx.float16)]
    names, whole = cuda_text.together(texts)
    assert names == ["custom_kernel_sample_0", "custom_kernel_sample_1"]
    assert whole.startswith(texts[0].prologue)
    assert whole.count(texts[0].prologue) == 1
    for name, text in zip(names, texts):
        assert text.function.replace(text.name, name) in whole


def test_the_pieces_are_those_of_mlx() -> None:
    present, reason = available()
    path = mlx_library.found()
    if not present or path is None:
        pytest.skip(reason)
    library = mlx_library.binary(path)
    pieces = [cuda_text.INCLUDES, cuda_text.OPEN, cuda_text.CLOSE, *cuda_text.DESCRIPTIONS.values()]
    pieces += ["  constexpr int {} = {};\n", "  constexpr bool {} = {};\n", "  using {} = {};\n", "__global__ void "]
    for piece in pieces:
        assert piece.encode() + b"\0" in library, piece
    # Of the types those that are not also Metal's, whose names the library has anyway.
    for dtype in (mx.float16, mx.bfloat16):
        assert b"\0" + cuda_text.TYPES[dtype].encode() + b"\0" in library


@pytest.mark.skipif(not mx.cuda.is_available(), reason="MLX prints its text where CUDA is")
def test_it_is_what_mlx_prints(capfd: pytest.CaptureFixture[str]) -> None:
    for case in instantiations():
        text = cuda_text.text_of(case.program, case.given, case.how)
        custom.as_cuda(case.program)(
            inputs=[mx.zeros(shape, dtype) for shape, dtype in case.given],
            output_shapes=list(case.how.shapes),
            output_dtypes=list(case.how.dtypes),
            grid=case.how.grid,
            threadgroup=case.how.threadgroup,
            template=list(case.how.template),
            stream=mx.gpu,
            verbose=True,
        )
        assert capfd.readouterr().out == f"Generated source code for `{text.name}`:\n```\n{text.whole}\n```\n"
