"""The Metal text that ``mx.fast.metal_kernel`` makes of a program and its arrays, rebuilt by MLX's rules.

MLX writes the signature: from the names, dtypes and sizes of the arrays and from the words that occur in the body.
What is right in a body thus depends on the arrays, and a check of the body alone would miss it. That this text is
MLX's, byte for byte, is tested in ``tests/kernels/test_generated_text.py``, without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Union

from metal_candle.kernels import custom

import mlx.core as mx

Kind = Literal["buffer", "shape", "strides", "ndim", "attribute"]

CONSTANT_BELOW = 8
"""An input of fewer elements is in Metal's ``constant`` address space."""

TYPES = {
    mx.bool_: "bool",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.complex64: "complex64_t",
}
"""How MLX spells each dtype in Metal, which has no float64."""

ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}
"""The attributes of Metal that MLX passes on, in its order, with their types."""


class Spec(NamedTuple):
    """What of an array the text depends on."""

    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


Array = Union[mx.array, "tuple[tuple[int, ...], mx.Dtype]"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of the generated function, in order.

    ``name`` is the parameter's own, ``array`` that of the input or output it is or describes ("" for an attribute).
    ``type`` is the C type without qualifiers. ``space`` is "" for what is passed by value.
    """

    kind: Kind
    name: str
    type: str
    passing: Literal["pointer", "reference", "value"]
    space: Literal["constant", "device", ""]
    array: str = ""
    output: bool = False

    def text(self, slot: int) -> str:
        """As MLX declares it, ``slot`` being the index of its buffer."""
        if self.kind == "attribute":
            return f"  {self.type} {self.name} [[{self.name}]]"
        qualifiers = f"{'' if self.output else 'const '}{self.space}"
        declarator = "*" if self.passing == "pointer" else "&"
        return f"  {qualifiers} {self.type}{declarator} {self.name} [[buffer({slot})]]"


@dataclass(frozen=True)
class Generated:
    """The text of one instantiation, whole and in parts: ``text`` is ``header + function + instantiation``."""

    header: str
    signature: str
    """From ``template`` or ``[[kernel]]`` to the brace that opens the function and its line's end."""
    body: str
    instantiation: str
    kernel_name: str
    template_arguments: tuple[str, ...]
    """As C++, in order: ``("bfloat16_t", "-3", "1")``."""
    parameters: tuple[Parameter, ...]

    @property
    def function(self) -> str:
        """The function alone, with its closing brace."""
        return f"{self.signature}{self.body}\n}}\n"

    @property
    def text(self) -> str:
        """What MLX hands to Metal's compiler after its own utilities."""
        return self.header + self.function + self.instantiation


def metal_source(program: custom.Program, inputs: Sequence[Array], how: custom.Launch) -> Generated:
    """The text that MLX generates for this launch; of an input only shape and dtype count.

    Raises ``ValueError`` for a dtype that Metal lacks, and for another number of inputs or outputs than the program's.
    """
    specs = [Spec(tuple(a.shape), a.dtype) if isinstance(a, mx.array) else Spec(*a) for a in inputs]
    outputs = [Spec(*pair) for pair in zip(how.shapes, how.dtypes)]
    for what, names, given in (("inputs", program.inputs, specs), ("outputs", program.outputs, outputs)):
        if len(names) != len(given):
            raise ValueError(f"{program.name}: got {len(given)} {what}; takes {len(names)}: {', '.join(names)}")
    parameters = (*_buffers(program, specs, outputs), *_attributes(program.body))
    arguments = tuple(_argument(value) for _, value in how.template)
    name = _kernel_name(program.name, arguments, specs, outputs)
    return Generated(
        header=program.header,
        signature=_template_line(how.template) + _signature(name, parameters, len(specs) + len(outputs)),
        body=program.body,
        instantiation=_instantiation(name, arguments),
        kernel_name=name,
        template_arguments=arguments,
        parameters=parameters,
    )


def type_name(dtype: mx.Dtype) -> str:
    """How MLX spells a dtype in Metal. Raises ``ValueError`` for float64, which Metal lacks."""
    if dtype not in TYPES:
        raise ValueError(f"metal_source: got {dtype}; takes {', '.join(TYPES.values())}")
    return TYPES[dtype]


def _buffers(program: custom.Program, inputs: list[Spec], outputs: list[Spec]) -> Iterator[Parameter]:
    for name, spec in zip(program.inputs, inputs):
        space: Literal["constant", "device"] = "constant" if spec.size < CONSTANT_BELOW else "device"
        yield Parameter(
            "buffer", name, type_name(spec.dtype), "pointer" if spec.shape else "reference", space, array=name
        )
        # MLX looks for the substring, in comments too; it adds nothing for an array without dimensions.
        if spec.shape and f"{name}_shape" in program.body:
            yield Parameter("shape", f"{name}_shape", "int", "pointer", "constant", array=name)
        if spec.shape and f"{name}_strides" in program.body:
            yield Parameter("strides", f"{name}_strides", "int64_t", "pointer", "constant", array=name)
        if spec.shape and f"{name}_ndim" in program.body:
            yield Parameter("ndim", f"{name}_ndim", "int", "reference", "constant", array=name)
    for name, spec in zip(program.outputs, outputs):
        yield Parameter("buffer", name, type_name(spec.dtype), "pointer", "device", array=name, output=True)


def _attributes(body: str) -> Iterator[Parameter]:
    for name, of in ATTRIBUTES.items():
        if name in body:
            yield Parameter("attribute", name, of, "value", "")


def _signature(name: str, parameters: tuple[Parameter, ...], arrays: int) -> str:
    lines = [f"[[kernel]] void {name}(\n"]
    attributes = any(parameter.kind == "attribute" for parameter in parameters)
    for slot, parameter in enumerate(parameters):
        # MLX takes an output for the last by its slot among the arrays, so a shape before several outputs and no
        # attribute close the list too early. That text is MLX's as well, and the type check refuses it.
        more = slot < arrays - 1 or attributes if parameter.output else True
        if parameter.kind == "attribute":
            more = slot < len(parameters) - 1
        lines.append(parameter.text(slot) + (",\n" if more else ") {\n"))
    return "".join(lines)


def _template_line(template: custom.Template) -> str:
    if not template:
        return ""
    return f"template <{', '.join(f'{_parameter_type(value)} {name}' for name, value in template)}>\n"


def _parameter_type(value: bool | int | mx.Dtype) -> str:
    return "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "typename"


def _argument(value: bool | int | mx.Dtype) -> str:
    return str(int(value)) if isinstance(value, int) else type_name(value)


def _kernel_name(name: str, arguments: tuple[str, ...], inputs: list[Spec], outputs: list[Spec]) -> str:
    parts = [type_name(spec.dtype) + _tag(spec) for spec in inputs] + [type_name(spec.dtype) for spec in outputs]
    # A minus is no letter of a name.
    template = "".join(f"_{argument}" for argument in arguments).replace("-", "_")
    return f"custom_kernel_{name}_{template}{'_' if template else ''}{'_'.join(parts)}"


def _tag(spec: Spec) -> str:
    """What tells instantiations by the signature of an input apart: none for a plain one."""
    return "s" if not spec.shape else "c" if spec.size < CONSTANT_BELOW else ""


def _instantiation(name: str, arguments: tuple[str, ...]) -> str:
    if not arguments:
        return ""
    instance = f"{name}<{', '.join(arguments)}>"
    return f'\ntemplate [[host_name("{name}")]] [[kernel]] decltype({instance}) {instance};\n'
