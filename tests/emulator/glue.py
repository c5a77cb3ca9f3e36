"""The C++ that the run pass compiles: the generated text between what it needs before and its entry after it."""

from __future__ import annotations

from collections.abc import Sequence

from .generate import Generated, Parameter

ENTRY = "em_kernel"
NAME = "em_body"
"""What the kernel is called here: MLX's name for it tells apart what is the same text without address spaces."""


def run_source(generated: Generated, defines: Sequence[str] = ()) -> str:
    """The text for ``toolchain.build_kernel``. Its lines are numbered by part: header, signature, body."""
    macros = "".join(f"#define {name}\n" for name in defines)
    parts = (("header", generated.header), ("signature", _plain(generated)), ("body", generated.body + "\n}\n"))
    numbered = "".join(f'#line 1 "{name}"\n{text.rstrip()}\n' for name, text in parts)
    return f'#include "as_cpp.h"\n{macros}{numbered}#line 1 "entry"\n{_entry(generated)}'


def _plain(generated: Generated) -> str:
    """The signature without what only the type check looks at, so that one object does for more instantiations."""
    return generated.signature.replace(generated.kernel_name, NAME).replace("const constant ", "const device ")


def _entry(generated: Generated) -> str:
    slots = iter(range(len(generated.parameters)))
    arguments = ", ".join(
        f"em_attribute::{p.name}(*t)" if p.kind == "attribute" else _argument(p, next(slots))
        for p in generated.parameters
    )
    template = f"<{', '.join(generated.template_arguments)}>" if generated.template_arguments else ""
    # Not instrumented: what it reads is the runtime's.
    return (
        'extern "C" __attribute__((visibility("default"), no_sanitize("thread")))\n'
        f"void {ENTRY}(void* const* a, const em_thread* t) {{\n"
        f"  {NAME}{template}({arguments});\n"
        "}\n"
    )


def _argument(parameter: Parameter, slot: int) -> str:
    of = parameter.type if parameter.output else f"const {parameter.type}"
    return f"{'*' if parameter.passing == 'reference' else ''}({of}*)a[{slot}]"
