"""The type check: the text MLX generates, read by clang with Metal's address spaces and halves without arithmetic.

It stands in for Metal's compiler, which no Linux machine has: wrong or lost address spaces, writes to inputs, halves
that convert or compute by themselves and names that one of the back-ends lacks are refused, as Metal, CUDA or both do.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from metal_candle.cache import cache_folder

from .fault import Fault
from .generate import Generated

_HEADER = Path(__file__).with_name("as_checked_cpp.h")
# Metal 3 is C++14 and has no arrays of variable length; its other limits of the language are dialect.py's.
_FLAGS = (
    "-std=c++14",
    "-Wno-everything",
    "-Werror=c++17-extensions",
    "-Werror=vla-extension",
    "-fsyntax-only",
    "-fno-caret-diagnostics",
)
_ERROR = re.compile(r"^(header|signature|body|instantiation):(\d+):\d+: (?:fatal )?error: (.*)$", re.MULTILINE)
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
    return f"{_HEADER.read_text(encoding='utf-8')}\n{numbered}\n"


def type_check(generated: Generated) -> None:
    """Raise ``Fault`` of kind "type" with the line of the body (or header) and clang's words if the text has an error.

    A text is read once: the verdict is kept in the cache folder. Raises ``FileNotFoundError`` without ``clang++``.
    """
    verdict = _verdict(checked_source(generated))
    if verdict:
        raise Fault("type", f"{generated.kernel_name}: {verdict}")


@cache
def _clang() -> tuple[str, str]:
    path = shutil.which("clang++")
    if path is None:
        raise FileNotFoundError("type_check: got no clang++ on the PATH; takes clang 14 or later")
    return path, subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


@cache
def _verdict(text: str) -> str:
    clang, version = _clang()
    key = hashlib.sha256("\0".join([version, *_FLAGS, text]).encode()).hexdigest()
    kept = cache_folder("emulator") / f"{key}.checked"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    done = subprocess.run([clang, *_FLAGS, "-x", "c++", "-"], input=text, capture_output=True, text=True)
    verdict = "" if done.returncode == 0 else _first_error(done.stderr)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: tests run in several processes at once.
    unfinished = kept.with_suffix(f".{os.getpid()}")
    unfinished.write_text(verdict, encoding="utf-8")
    unfinished.replace(kept)
    return verdict


def _first_error(said: str) -> str:
    found = _ERROR.search(said)
    if found is None:
        return said.strip()
    part, line, message = found.groups()
    words = re.sub(r"__attribute__\(\(address_space\((\d)\)\)\)", lambda space: _SPACES[space[1]], message)
    return f"{part} line {line}: {words}"
