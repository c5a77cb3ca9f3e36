"""What a file or a caller named, made fit for one line of an error."""

from __future__ import annotations

from collections.abc import Sequence


def described(value: object) -> str:
    """A wrong argument in an error: its own text if it is a number, text, bytes or None, else its type."""
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (int, float, complex)):
        return shown(repr(value))
    if isinstance(value, (str, bytes)):
        return shown(repr(value[:100]))
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIOU' or name == 'ndarray' else 'a'} {name}"


def shown(value: object, most: int = 80) -> str:
    """``value`` as text on one line: control characters escaped, the middle left out beyond ``most`` characters.

    A file can name a tensor with a line break, or with a million letters. The first characters tell where to look,
    the last ones are what names differ in.
    """
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"<{type(value).__name__}>"
    head = most * 2 // 3
    tail = most - head - 1
    if len(text) > most:
        text = text[:head] + "…" + text[-tail:]
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return escaped if len(escaped) <= most else f"{escaped[:head]}…{escaped[-tail:]}"


def first_few(texts: Sequence[object], most: int, separator: str = ", ") -> str:
    """Several things on one line, the first ``most`` by name: "a, b and 3 more"."""
    more = len(texts) - most
    end = f"{' ' if separator == ', ' else separator}and {more} more" if more > 0 else ""
    return separator.join(map(str, texts[:most])) + end
