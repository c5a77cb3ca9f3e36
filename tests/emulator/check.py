"""The type check: the text MLX generates, read by clang with Metal's address spaces and halves without arithmetic.

It stands in for Metal's compiler, which no Linux machine has: wrong or lost address spaces, writes to inputs, halves
that convert or compute by themselves and names that one of the back-ends lacks are refused, as Metal, CUDA or both do.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from . import toolchain
from .declared import holds_structures
from .fault import Fault
from .generate import Generated

_HEADER = Path(__file__).with_name("as_checked_cpp.h")
# Metal 3 is C++14 and has no arrays of variable length; its other limits of the language are dialect.py's. A private
# variable that nobody wrote is in no memory that the run could watch, but the compiler sees it.
_FLAGS = (
    "-std=c++14",
    "-Wno-everything",
    "-Werror=c++17-extensions",
    "-Werror=vla-extension",
    "-Werror=uninitialized",
    "-Werror=sometimes-uninitialized",
    "-Werror=return-type",
    "-fsyntax-only",
    "-fno-caret-diagnostics",
)
_ERROR = re.compile(r"^(header|signature|body|instantiation):(\d+):\d+: (?:fatal )?error: (.*)$", re.MULTILINE)
_UNINITIALISED = "uninitialized"
_SPACES = {"1": "device", "2": "constant", "3": "threadgroup"}


def checked_source(generated: Generated) -> str:
    """The C++ that clang reads for the check, with line numbers of the body's own."""
    instance = f"{generated.kernel_name}<{', '.join(generated.template_arguments)}>"
    parts = {
        "header": generated.header,
        "signature": generated.signature,
        "body": f"{generated.body}\n}}",
        # clang takes no attributes here.
        "instantiation": f"template decltype({instance}) {instance};" if generated.template_arguments else "",
    }
    numbered = "\n".join(f'#line 1 "{name}"\n{text.rstrip()}' for name, text in parts.items())
    # clang cannot copy a structure out of an address space.
    spaces = "#undef threadgroup\n#define threadgroup static\n" if holds_structures(generated) else ""
    return f"{_HEADER.read_text(encoding='utf-8')}\n{spaces}{numbered}\n"


def type_check(generated: Generated) -> None:
    """Raise ``Fault`` with the line of the body (or header) and clang's words if the text has an error.

    Its kind is "type", or "uninitialised" for a variable that is read before it is written. A text is read once: the
    verdict is kept in the cache folder. Raises ``RuntimeError`` without a compiler.
    """
    verdict = _verdict(checked_source(generated))
    if verdict:
        raise Fault("uninitialised" if _UNINITIALISED in verdict else "type", f"{generated.kernel_name}: {verdict}")


@cache
def _verdict(text: str) -> str:
    """clang's first complaint, "" for none."""
    key = hashlib.sha256("\0".join([toolchain.identity(), *_FLAGS, text]).encode()).hexdigest()[:32]
    kept = toolchain.kept_folder() / f"check-{key}.txt"
    try:
        return kept.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    command = [str(toolchain.compiler()), *_FLAGS, "-x", "c++", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    verdict = "" if done.returncode == 0 else _first_error(done.stderr)
    # Renamed into place: tests run in several processes at once.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=kept.parent, delete=False) as unfinished:
        unfinished.write(verdict)
    os.replace(unfinished.name, kept)
    return verdict


def _first_error(said: str) -> str:
    found = _ERROR.search(said)
    if found is None:
        return said.strip()
    part, line, message = found.groups()
    words = re.sub(r"__attribute__\(\(address_space\((\d)\)\)\)", lambda space: _SPACES[space[1]], message)
    return f"{words.partition(' [-Werror')[0]}, at line {line} of the {part}"
