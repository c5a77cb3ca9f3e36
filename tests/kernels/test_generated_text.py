"""The text the emulator runs is MLX's own, byte for byte. Needs no GPU: MLX prints what it generates."""

from __future__ import annotations

from collections.abc import Sequence

from metal_candle.kernels import custom

import mlx.core as mx
import pytest
from emulator import generate
from given import Given, how
from printed import printed

NOTHING = "  y[0] = 0;\n"


def given(inputs: tuple[str, ...], outputs: tuple[str, ...], body: str, header: str = "", name: str = "given") -> Given:
    """A program with this body and header."""
    return Given(name, inputs, outputs, body=body, header=header)


def assert_same(program: custom.Program, inputs: Sequence[mx.array], launch: custom.Launch) -> generate.Generated:
    """Assert that ours is MLX's."""
    ours = generate.metal_source(program, inputs, launch)
    assert ours.text == printed(program, inputs, launch)
    return ours


ALL = tuple(generate.TYPES)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_each_dtype_as_input_as_output_and_in_the_template(dtype: mx.Dtype) -> None:
    program = given(("x", "small", "one"), ("y",), "  y[0] = T(x[0] + small[0] + one);\n")
    inputs = [mx.zeros((3, 5), dtype), mx.zeros((7,), dtype), mx.zeros((), dtype)]
    made = assert_same(program, inputs, how(((4,), dtype), template=(("T", dtype),)))
    spaces = [(p.space, p.passing) for p in made.parameters]
    assert spaces == [("device", "pointer"), ("constant", "pointer"), ("constant", "reference"), ("device", "pointer")]
    assert made.template_arguments == (generate.TYPES[dtype],)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_small_inputs_are_constant(size: int) -> None:
    made = assert_same(given(("x",), ("y",), NOTHING), [mx.zeros((size,))], how(((2,), mx.float32)))
    assert made.parameters[0].space == ("constant" if size < 8 else "device")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 4), (2, 3), (2, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "words",
    ["x_shape", "x_strides", "x_ndim", "x_shape x_strides x_ndim", "max_shape", "x_shapes", "shape", "X_shape"],
)
def test_shapes_strides_and_dimensions_by_substring(shape: tuple[int, ...], words: str) -> None:
    program = given(("x", "other"), ("y",), f"  // {words} thread_position_in_grid\n{NOTHING}")
    assert_same(program, [mx.zeros(shape), mx.zeros((9, 9))], how(((2,), mx.float32)))


@pytest.mark.parametrize("attribute", generate.ATTRIBUTES)
def test_each_attribute_in_the_body_but_not_in_the_header(attribute: str) -> None:
    program = given(("x",), ("y",), f"  y[0] = {attribute};\n", "// threads_per_grid grid_size x_shape\n")
    made = assert_same(program, [mx.zeros((9,))], how(((2,), mx.float32)))
    assert attribute in [p.name for p in made.parameters if p.kind == "attribute"]
    assert "x_shape" not in [p.name for p in made.parameters]


def test_all_attributes_and_parts_of_words() -> None:
    program = given(("x",), ("y",), f"  // {' '.join(reversed(generate.ATTRIBUTES))} mygrid_sizes\n{NOTHING}")
    made = assert_same(program, [mx.zeros((9,))], how(((2,), mx.float32)))
    assert [p.name for p in made.parameters if p.kind == "attribute"] == list(generate.ATTRIBUTES)


@pytest.mark.parametrize("body", [NOTHING, "  int n = x_shape[0];\n", "  uint n = x_shape[0] + grid_size.x;\n"])
@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("inputs", [0, 1, 2])
def test_several_outputs(inputs: int, outputs: int, body: str) -> None:
    # Without an attribute MLX closes the list of several outputs after a shape too early; ours does as it does.
    program = given(tuple("xzw"[:inputs]), tuple("yuv"[:outputs]), body)
    launch = how(*[((i, 3), mx.float16) for i in range(outputs)])
    assert_same(program, [mx.zeros((4, 4), mx.int8)] * inputs, launch)


@pytest.mark.parametrize(
    "template",
    [
        (),
        (("N", 3),),
        (("N", -3), ("M", 0), ("L", 2147483647), ("K", -2147483648)),
        (("F", True), ("G", False)),
        (("T", mx.bfloat16), ("U", mx.bool_), ("N", -1), ("F", True), ("V", mx.float32)),
    ],
    ids=str,
)
def test_template_arguments_and_their_name(template: custom.Template) -> None:
    program = given(("x",), ("y",), NOTHING, "// header without an end of line", "with_digits_2")
    assert_same(program, [mx.zeros((9,))], how(((2,), mx.float32), template=template))


def test_bodies_are_kept_as_they_are() -> None:
    for body in ("", "\n", "  y[0] = 1;", "\ty[0] = '\\n';\r\n\n", "// ünïcode ×\n"):
        assert_same(given(("x",), ("y",), body), [mx.zeros((9,))], how(((), mx.float32)))


def test_a_shape_and_a_dtype_stand_for_an_array() -> None:
    program, launch = given(("x",), ("y",), NOTHING), how(((2,), mx.float32))
    array = mx.zeros((2, 3), mx.float16)
    assert generate.metal_source(program, [((2, 3), mx.float16)], launch) == generate.metal_source(
        program, [array], launch
    )


def test_refusals() -> None:
    program = given(("x",), ("y",), NOTHING)
    with pytest.raises(ValueError, match=r"given: got 2 inputs; takes 1: x"):
        generate.metal_source(program, [mx.zeros((2,))] * 2, how(((2,), mx.float32)))
    with pytest.raises(ValueError, match=r"given: got 0 outputs; takes 1: y"):
        generate.metal_source(program, [mx.zeros((2,))], how())
    with pytest.raises(ValueError, match=r"metal_source: got mlx.core.float64; takes bool, "):
        generate.metal_source(program, [((9,), mx.float64)], how(((2,), mx.float32)))
