"""The portable dialect: what a body may say so that it means the same on Metal, on CUDA and in the emulator.

Each rule is one that text alone can show; address spaces and types are ``check.py``'s, behaviour is the emulator's.
What is refused here compiles on one of the back-ends at least, which is why a rule is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .generate import ATTRIBUTES


class Finding(NamedTuple):
    """A breach of the dialect: the line of the file, and the rule as a sentence."""

    line: int
    rule: str


@dataclass(frozen=True)
class Vocabulary:
    """What a header that spells Metal's names offers: functions by namespace, attributes that it defines as macros."""

    functions: dict[str, frozenset[str]]
    attributes: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """The functions of all namespaces below ``metal``."""
        return frozenset().union(*(names for space, names in self.functions.items() if space))


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    text: str


def _rule(pattern: str, text: str) -> _Rule:
    return _Rule(re.compile(pattern), text)


_EVERYWHERE = (
    _rule(r"\b(?:device|constant)\b", "`device` and `constant` are not written: a pointer into an array is `auto`"),
    _rule(r"\bthreadgroup\b[^;()\[]*[*&]", "threadgroup memory is an array; a pointer to it is `auto`"),
    _rule(r"\b(?:thread|threadgroup|uint)\s*(?:=|;|\[|\.|[-+/%<])", "`thread`, `threadgroup` and `uint` are no names"),
    _rule(r"\(\s*(?:const\s+)?(?:\w+\s+)?\w+\s*(?:const\s*)?[*]\s*\)\s*[\w(&]", "no cast makes a pointer"),
    _rule(r"\breinterpret_cast\b|\bas_type\b", "no cast reads other bits: CUDA and Metal spell it differently"),
    _rule(r"\bif\s+constexpr\b", "`if constexpr` is C++17, and CUDA compiles both branches all the same"),
    _rule(r"(?<![\w\])])\s*\[[&=\w\s,]*\]\s*(?:\([^()]*\)\s*)?\{", "Metal has no lambda"),
    _rule(
        r"\b(?:goto|new|delete|try|catch|throw|virtual|dynamic_cast|typeid|noexcept|thread_local|register|asm|double"
        r"|static|extern|volatile|union|wchar_t)\b",
        "Metal, or the dialect, lacks this word",
    ),
    _rule(r"\blong\b", "`long` has 64 bits in Metal and 32 elsewhere: `int64_t`"),
    _rule(r"\bstd\s*::|#\s*include\b|\bprintf\b|\bassert\b", "there is no standard library"),
    _rule(r"\batomic\w*", "atomics are spelled differently on CUDA"),
    _rule(
        r"\b(?:b?float|half|u?int|u?short|u?char|u?long|bool)[234]\b(?<!\buint3)|\bpacked_\w+|\bsimd\s*::",
        "CUDA has no arithmetic on vectors",
    ),
    _rule(
        r"\b(?:Limits|elem_to_loc\w*|ceildiv|log1p|complex64_t|instantiate_kernel)\b|\bnumeric_limits\b",
        "this helper of MLX's or Metal's is not on every back-end",
    ),
    _rule(
        r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+[eE][-+]?\d+)(?:[eE][-+]?\d+)?(?![\w.])", "a number without `f` is a double"
    ),
    _rule(r"(?<![\w.])[\d.]+(?:[eE][-+]?\d+)?[hH]\b", "CUDA has no suffix `h`"),
    _rule(r"\b(?:threadIdx|blockIdx|blockDim|gridDim|__\w+)\b", "names of one back-end alone"),
)
_SYNCHRONISES = re.compile(r"\b(?:threadgroup_barrier|simdgroup_barrier|simd_\w+)\s*\(")
_FUNCTION = re.compile(r"^(?!\s)(?:(?:inline|constexpr)\s+)*[\w:<>]+[\s&*]+(\w+)\s*\([^;{}]*\)\s*\{", re.MULTILINE)


def lint_body(text: str, header: str, portable: Vocabulary) -> list[Finding]:
    """The breaches in the body of a kernel, in order. ``header`` is what it may call."""
    code = without_comments(text)
    synchronising = _synchronising(without_comments(header))
    return sorted(
        {
            *_everywhere(code, portable),
            *_threadgroup_memory(code),
            *_early_returns(code, synchronising),
            *_attributes_in_comments(text, code, portable),
        }
    )


def lint_header(text: str, portable: Vocabulary) -> list[Finding]:
    """The breaches in what several bodies call. What only CUDA's compiler reads may be anything."""
    code = _without_cuda(without_comments(text))
    found = set(_everywhere(code, portable))
    for name in (*ATTRIBUTES, "threadgroup"):
        for match in re.finditer(rf"\b{name}\b", code):
            found.add(Finding(_line(code, match.start()), f"a helper gets what it needs passed, not `{name}`"))
    defined = [*_FUNCTION.finditer(code), *re.finditer(r"^#define\s+(\w+)|\b(?:struct|using)\s+(\w+)", code, re.M)]
    for match in defined:
        name = match[match.lastindex or 1]
        if not name.lower().startswith("mc_"):
            found.add(Finding(_line(code, match.start()), f"names in the header start with mc_, not `{name}`"))
    for name, start, body in _functions(code):
        if re.search(rf"\b{name}\s*\(", body):
            found.add(Finding(_line(code, start), f"Metal has no recursion: `{name}`"))
    return sorted(found)


def without_comments(text: str) -> str:
    """The text with comments and strings blank, every line where it was."""

    def blank(match: re.Match[str]) -> str:
        if match[0].startswith('"'):
            return '""' + " " * (len(match[0]) - 2)
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"", blank, text, flags=re.DOTALL)


def _without_cuda(code: str) -> str:
    """The text with what stands between ``#ifdef MC_FOURS`` and its ``#else`` or ``#endif`` blank."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"^#ifdef MC_FOURS$.*?^#(?:else|endif)$", blank, code, flags=re.MULTILINE | re.DOTALL)


def vocabulary(header: str) -> Vocabulary:
    """What ``as_cuda.h`` or a header of the emulator offers, read from its text."""
    code = without_comments(header)
    lists = {
        name: body.replace("\\\n", "\n")
        for name, parameters, body in re.findall(r"^#define (\w+)(\([^)]*\))?((?:[^\n]*\\\n)*[^\n]*)", code, re.M)
        if not parameters
    }
    plain = re.sub(r"^#\s*\w+(?:[^\n]*\\\n)*[^\n]*", "", code, flags=re.MULTILINE)
    for name, body in lists.items():
        if "MC_" in body:
            plain = re.sub(rf"\b{name}\b", lambda _, body=body: body, plain)  # type: ignore[misc]
    functions: dict[str, set[str]] = {}
    spaces: list[str] = []
    token = re.compile(
        r"namespace\s+(?P<space>\w+)\s*\{|(?P<open>\{)|(?P<close>\})"
        r"|\bMC_\w+\((?P<listed>\w+)|(?<![\w:.])(?P<type>[a-zA-Z_]\w*)\s+(?P<name>\w+)\("
    )
    for match in token.finditer(plain):
        if match["space"]:
            spaces.append(match["space"])
        elif match["open"]:
            spaces.append("")
        elif match["close"]:
            spaces.pop()
        elif "" not in spaces and match["type"] not in ("return", "operator") and match["name"] != "__attribute__":
            functions.setdefault("::".join(spaces), set()).add(match["listed"] or match["name"])
    return Vocabulary({space: frozenset(names) for space, names in functions.items()}, frozenset(lists) & {*ATTRIBUTES})


def _everywhere(code: str, portable: Vocabulary) -> Iterator[Finding]:
    for rule in _EVERYWHERE:
        for match in rule.pattern.finditer(code):
            at = match.start() + len(match[0]) - len(match[0].lstrip())
            yield Finding(_line(code, at), f"{rule.text}: `{' '.join(match[0].split())}`")
    for match in re.finditer(r"\b(metal(?:\s*::\s*(?:precise|fast))?)\s*::\s*(\w+)\s*\(", code):
        space, name = re.sub(r"\s", "", match[1]), match[2]
        if name not in portable.functions.get(space, ()):
            yield Finding(_line(code, match.start()), f"as_cuda.h has no `{space}::{name}`")
    for match in re.finditer(r"(?<![\w:.])(?<!:: )(\w+)\s*\(", code):
        if match[1] in portable.all:
            yield Finding(_line(code, match.start()), f"say `metal::{match[1]}`: CUDA has another `{match[1]}`")
    for match in re.finditer(r"\b(simd_\w+)\s*\(", code):
        if match[1] not in portable.functions.get("", ()):
            yield Finding(_line(code, match.start()), f"as_cuda.h has no `{match[1]}`")
    for name in ATTRIBUTES:
        if name not in portable.attributes:
            for match in re.finditer(rf"\b{name}\b", code):
                yield Finding(_line(code, match.start()), f"as_cuda.h has no `{name}`")


def _threadgroup_memory(code: str) -> Iterator[Finding]:
    for match in re.finditer(r"\bthreadgroup\b([^;]*);", code):
        line = _line(code, match.start())
        if code.count("{", 0, match.start()) != code.count("}", 0, match.start()):
            yield Finding(line, "threadgroup memory is declared at the top of the body, in no block")
        if not re.fullmatch(r"\s+\w+\s+\w+(?:\[[^\[\]]+\])+", match[1]):
            yield Finding(line, "threadgroup memory is declared as `threadgroup T name[CONSTANT];`, one a line")


def _early_returns(code: str, synchronising: frozenset[str]) -> Iterator[Finding]:
    waits = [match.start() for match in _SYNCHRONISES.finditer(code)]
    waits += [match.start() for match in re.finditer(r"\b(\w+)\s*\(", code) if match[1] in synchronising]
    last = max(waits, default=-1)
    for match in re.finditer(r"\breturn\b", code):
        if match.start() < last:
            yield Finding(_line(code, match.start()), "no return before a barrier or a simdgroup operation")


def _attributes_in_comments(text: str, code: str, portable: Vocabulary) -> Iterator[Finding]:
    for name in portable.attributes:
        if name in text and name not in code:
            yield Finding(_line(text, text.index(name)), f"MLX passes `{name}` because a comment says the word")


def _synchronising(header: str) -> frozenset[str]:
    """The functions of the header in which threads wait for each other, directly or through another."""
    functions = list(_functions(header))
    found: set[str] = set()
    while True:
        more = {
            name
            for name, _, body in functions
            if _SYNCHRONISES.search(body) or any(re.search(rf"\b{other}\s*\(", body) for other in found)
        }
        if more == found:
            return frozenset(found)
        found = more


def _functions(code: str) -> Iterator[tuple[str, int, str]]:
    """Name, start and body of each function."""
    for match in _FUNCTION.finditer(code):
        end = code.find("\n}", match.end())
        yield match[1], match.start(), code[match.end() : end if end >= 0 else len(code)]


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
