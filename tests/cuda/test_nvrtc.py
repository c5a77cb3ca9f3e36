"""Every instantiation of every kernel compiles for NVIDIA's GPUs as MLX compiles it, without a warning or a spill.

It needs no GPU, but three packages, and is skipped without them:

- ``nvidia-cuda-nvrtc``, the compiler, and ``nvidia-cuda-runtime``, CUDA's headers: ``pip install '.[cuda-check]'``.
- The wheel ``mlx-cuda-13`` of the MLX that is installed, for the headers inside it. It must not be installed beside
  MLX's CPU wheel, since both write ``mlx/lib/libmlx.so``: ``pip download --no-deps mlx-cuda-13==<version> --dest
  FOLDER``, and ``METAL_CANDLE_MLX_CUDA=FOLDER`` says where it lies. Where MLX for CUDA is installed, its own are taken.

What was compiled is kept in the cache folder, so that only what changed is compiled again. ``python
tests/cuda/table.py`` prints registers, memory and occupancy. Results are compared where a GPU is: the tests of
``tests/kernels`` launch the kernels on it, so that ``pytest tests/kernels tests/cuda`` is all there is to run there.
"""

from __future__ import annotations

from collections.abc import Sequence

import limits
import mlx.core as mx
import pytest
from compilation import Compiled, Compiler
from cuda_text import Text, text_of
from instantiations import Instantiation, instantiations


def texts_of(cases: Sequence[Instantiation]) -> list[Text]:
    """What MLX would compile for them."""
    return [text_of(case.program, case.given, case.how) for case in cases]


def one_of_each_program(dtype: mx.Dtype) -> list[Instantiation]:
    """The first instantiation of each program with inputs of this dtype."""
    fitting = [case for case in instantiations() if dtype in [given for _, given in case.given]]
    return list({case.program.name: case for case in reversed(fitting)}.values())


def assert_compiles(compiled: Compiled, case: Instantiation) -> None:
    """Assert that the compiler took it and had nothing to say."""
    assert not compiled.failed, f"{case}: {compiled.said}"
    assert compiled.said == "", str(case)


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, compiling: Compiler) -> list[tuple[Instantiation, Compiled]]:
    """All instantiations of the programs that are tested: at once, which is half the work of one program at a time."""
    specs = [item.callspec for item in request.session.items if isinstance(item, pytest.Function) and "[" in item.name]
    names = {spec.params.get("program") for spec in specs}
    cases = [case for case in instantiations() if case.program.name in names]
    return list(zip(cases, compiling.compile_all(texts_of(cases))))


@pytest.mark.parametrize("program", sorted({case.program.name for case in instantiations()}))
def test_every_instantiation_compiles_and_fits(found: list[tuple[Instantiation, Compiled]], program: str) -> None:
    cases = [(case, compiled) for case, compiled in found if case.program.name == program]
    assert cases
    for case, compiled in cases:
        assert_compiles(compiled, case)
        x, y, z = case.how.threadgroup
        assert compiled.spilled == 0, f"{case}: {compiled.spilled} bytes of registers go to memory"
        assert compiled.stack == 0, f"{case}: {compiled.stack} bytes of a thread's arrays are not in registers"
        assert 0 < compiled.registers <= limits.REGISTERS_OF_A_THREAD
        # More is an error when the launch is evaluated, where nothing can take its place.
        assert limits.registers_of(compiled, x * y * z) <= limits.REGISTERS, f"{case}: {compiled.registers} registers"
        assert compiled.shared <= limits.SHARED, f"{case}: {compiled.shared} bytes of threadgroup memory"


@pytest.mark.parametrize("architecture", ["compute_75", "compute_120a"])
def test_the_oldest_and_the_newest_that_mlx_is_built_for(compiling: Compiler, architecture: str) -> None:
    # bfloat16, which the oldest has no instructions for.
    cases = one_of_each_program(mx.bfloat16)
    for case, compiled in zip(cases, compiling.compile_all(texts_of(cases), architecture)):
        assert_compiles(compiled, case)


def test_alone_it_is_what_it_is_in_company(compiling: Compiler) -> None:
    # Kernels share a text only to save time: MLX compiles each alone.
    texts = texts_of(one_of_each_program(mx.float16))
    assert compiling.compile_all(texts, most=1) == compiling.compile_all(texts)
