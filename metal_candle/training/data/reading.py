"""Reading training rows from JSON Lines files.

A row is one JSON object per line, in one of three forms: ``{"text"}``, ``{"prompt", "completion"}`` or
``{"messages": [{"role", "content"}, ...]}``. Other fields of a row (an id, a source) are left alone.
Everything wrong with a file is a ``DataError`` that names the file and the line.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ...error import DataError
from ...error.expect import PATH
from ...error.takes import takes

FORMS = (("text",), ("prompt", "completion"), ("messages",))
ROLES = ("system", "user", "assistant", "tool")
ACCEPTED = '{"text"}, {"prompt", "completion"} or {"messages": [{"role", "content"}, ...]}'
SYNONYMS = {  # field names of other common layouts
    "instruction": "prompt",
    "question": "prompt",
    "input": "prompt",
    "output": "completion",
    "response": "completion",
    "answer": "completion",
    "chosen": "completion",
    "conversations": "messages",
    "dialog": "messages",
    "content": "text",
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Text:
    """A row that is trained on from its beginning to its end."""

    text: str


@dataclass(frozen=True)
class Completion:
    """A row of which the completion is trained on."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A row of which every assistant turn is trained on."""

    messages: tuple[Message, ...]


Content: TypeAlias = Text | Completion | Conversation
Refuse: TypeAlias = Callable[[str], NoReturn]
"""Raises the error of one line."""


@dataclass(frozen=True)
class Row:
    """One line of a training file: where it stands (lines count from 1) and what it says."""

    path: Path
    line: int
    content: Content


@takes(path=PATH)
def read_rows(path: str | Path) -> list[Row]:
    """Read a JSON Lines file; blank lines are skipped.

    Raises ``DataError.InvalidFile`` for a file that is missing, unreadable or has no rows, and
    ``DataError.InvalidLine`` for the first line that is not UTF-8, not JSON or not a row.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError.InvalidFile(path=path, reason="no such file") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataError.InvalidFile(path=path, reason=reason) from error
    rows = [_row(path, line, text) for line, text in _lines(path, data)]
    if not rows:
        raise DataError.InvalidFile(path=path, reason=f"has no rows; each line takes {ACCEPTED}")
    return rows


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """The non-blank lines with their numbers. Only a line feed ends a line: JSON allows U+2028 in text."""
    for line, raw in enumerate(data.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield line, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line"
            raise DataError.InvalidLine(path=path, line=line, reason=reason) from None


def _row(path: Path, line: int, text: str) -> Row:
    def refuse(reason: str) -> NoReturn:
        raise DataError.InvalidLine(path=path, line=line, reason=reason)

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a JSON array is not JSON Lines: put one object on each line" if text.strip() == "[" else ""
        refuse(f"broken JSON: {error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:
        refuse(f"broken JSON: {str(error).splitlines()[0]}")
    if not isinstance(value, dict):
        refuse(f"got {_kind(value)}; a line takes one object: {ACCEPTED}")
    return Row(path, line, _content(value, refuse))


def _content(value: dict[str, Any], refuse: Refuse) -> Content:
    complete = [form for form in FORMS if all(field in value for field in form)]
    if len(complete) > 1:
        named = " and ".join("+".join(form) for form in complete)
        refuse(f"fields {named} are both there; takes one of {ACCEPTED}")
    if not complete:
        refuse(f"got {_fields(value)}; takes {ACCEPTED}{_nearest(value)}")
    match complete[0]:
        case ("text",):
            return Text(_text(value["text"], "text", refuse))
        case ("prompt", "completion"):
            prompt, completion = (_text(value[field], field, refuse) for field in ("prompt", "completion"))
            return Completion(prompt, completion)
        case _:
            return _conversation(value["messages"], refuse)


def _conversation(value: Any, refuse: Refuse) -> Conversation:
    if not isinstance(value, list) or not value:
        refuse(f"messages is {_kind(value)}; takes a list of at least one user and one assistant turn")
    messages = []
    for number, entry in enumerate(value, start=1):
        where = f"message {number}"
        if not isinstance(entry, dict):
            refuse(f'{where} is {_kind(entry)}; takes {{"role", "content"}}')
        if set(entry) != {"role", "content"}:
            refuse(f'{where} has {_fields(entry)}; takes exactly "role" and "content"')
        role = entry["role"]
        if role not in ROLES:
            near = difflib.get_close_matches(str(role), ROLES, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            refuse(f"{where} has role {role!r}; takes {', '.join(ROLES)}{hint}")
        messages.append(Message(role, _text(entry["content"], f"the content of {where} ({role})", refuse)))
    if not any(message.role == "assistant" for message in messages):
        refuse("messages has no assistant turn, so there is nothing to train on")
    return Conversation(tuple(messages))


def _text(value: Any, name: str, refuse: Refuse) -> str:
    if not isinstance(value, str):
        refuse(f"{name} is {_kind(value)}; takes text")
    if not value.strip():
        refuse(f"{name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        refuse(f"{name} has a lone surrogate, \\u{ord(value[error.start]):04x}, which is no character")
    return str(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, str, dict)) and not value:
        return f"an empty {_JSON_NAMES[type(value)].split()[-1]}"
    return _JSON_NAMES[type(value)]


_JSON_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}


def _fields(value: dict[str, Any]) -> str:
    return "fields " + ", ".join(json.dumps(field) for field in value) if value else "no fields"


def _nearest(value: dict[str, Any]) -> str:
    """What the row's field names were probably meant to be."""
    names = [field for form in FORMS for field in form]
    pairs = []
    for field in value:
        close = difflib.get_close_matches(field.lower(), names, n=1)
        near = SYNONYMS.get(field.lower(), close[0] if close else None)
        if near is not None and near not in value:
            pairs.append(f"{json.dumps(near)} for {json.dumps(field)}")
    return f"; nearest: {', '.join(pairs)}" if pairs else ""
