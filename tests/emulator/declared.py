"""What the run needs to know of declarations in a kernel's text, and an object without debug information lacks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .dialect import without_comments
from .fault import Fault
from .generate import Generated

SIZES = {
    "bool": 1,
    "char": 1,
    "uchar": 1,
    "int8_t": 1,
    "uint8_t": 1,
    "short": 2,
    "ushort": 2,
    "int16_t": 2,
    "uint16_t": 2,
    "half": 2,
    "bfloat": 2,
    "float16_t": 2,
    "bfloat16_t": 2,
    "int": 4,
    "uint": 4,
    "int32_t": 4,
    "uint32_t": 4,
    "float": 4,
    "long": 8,
    "ulong": 8,
    "int64_t": 8,
    "uint64_t": 8,
}
"""Metal's scalars in bytes, by which they are aligned too."""

_POINTER = re.compile(r"\bthreadgroup\b[^;()\[{]*[*&]")
_ARRAY = re.compile(r"\bthreadgroup\s+([\w:]+)\s+(\w+)((?:\s*\[[^\[\]]+\])+)")
_STRUCTURE = re.compile(r"\bstruct\s+(\w+)[^;{]*\{([^{}]*)\}")
_MEMBER = re.compile(r"\s*(\w+)\s+(\w+(?:\s*\[\s*\d+\s*\])?(?:\s*,\s*\w+(?:\s*\[\s*\d+\s*\])?)*)\s*")
_PRODUCT = re.compile(r"[\d\s*]+")


def refuse_pointers(generated: Generated) -> None:
    """Raise ``Fault`` of kind "type" for a pointer to threadgroup memory that is declared with the word.

    Legal Metal, but in C++ the variable itself would lie there, and on CUDA it does not compile.
    """
    for part, text in (("header", generated.header), ("body", generated.body)):
        code = without_comments(text)
        for match in _POINTER.finditer(code):
            line = code.count("\n", 0, match.start()) + 1
            raise Fault(
                "type",
                f"{generated.kernel_name}: a pointer to threadgroup memory is declared as `auto`, "
                f"not `{' '.join(match[0].split())}`, at line {line} of the {part}",
            )


def structures(generated: Generated) -> dict[str, str]:
    """The structures that the text defines: their members' declarations by name."""
    return dict(_STRUCTURE.findall(without_comments(f"{generated.header}\n{generated.body}")))


def holds_structures(generated: Generated) -> bool:
    """Whether threadgroup memory holds structures that the text defines."""
    found = structures(generated)
    return any(of in found for of, _, _ in _ARRAY.findall(without_comments(generated.body)))


def padded(generated: Generated) -> bool:
    """Whether some structure may have bytes that are no member's. One of other members than scalars may."""
    return any(_padded(members) for members in structures(generated).values())


def _padded(members: str) -> bool:
    end, widest = 0, 1
    for member in filter(str.strip, members.split(";")):
        match = _MEMBER.fullmatch(member)
        if match is None or match[1] not in SIZES:
            return True
        size = SIZES[match[1]]
        if end % size:
            return True
        end += size * sum(int((re.findall(r"\d+(?=\s*\])", name) or ["1"])[0]) for name in match[2].split(","))
        widest = max(widest, size)
    return end % widest > 0


def element_bytes(generated: Generated, template: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Of each array of threadgroup memory: the bytes of a scalar element or 0, and the number of elements or 0.

    ``template`` has the template arguments by name. 0 stands for what the text does not tell.
    """
    found = {}
    for of, name, dimensions in _ARRAY.findall(without_comments(generated.body)):
        product = " * ".join(re.findall(r"\[([^\]]+)\]", dimensions))
        for parameter, argument in template.items():
            product = re.sub(rf"\b{parameter}\b", argument, product)
        count = 0
        if _PRODUCT.fullmatch(product):
            count = 1
            for factor in product.split("*"):
                count *= int(factor)
        found[name] = (SIZES.get(template.get(of, of), 0), count)
    return found
