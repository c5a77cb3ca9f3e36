"""What a file or a caller named, made fit for one line of an error."""

from __future__ import annotations


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
