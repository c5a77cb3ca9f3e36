"""llama.cpp's importance matrices (``imatrix.dat``): how much each column of a weight is used."""

from __future__ import annotations

import numpy as np

from .byte_reader import Source, opened
from .reading import shown

_LEAST = 4 + 4 + 4 + 4  # an entry: the name's length, two counts, one number


def read_imatrix(source: Source) -> dict[str, list[float]]:
    """The mean of the squared activations by tensor name, float32 as Python floats.

    Raises ``NotFoundError``, ``IoError``, and ``ModelError.InvalidFormat`` for a file that is truncated, without
    entries, or whose counts are negative or too large. What follows the entries in newer files is not read.
    """
    with opened(source) as reader:
        count = reader.count("i", _LEAST, "entries")
        if not count:
            raise reader.invalid("holds no entries")
        found: dict[str, list[float]] = {}
        for _ in range(count):
            name = reader.text(reader.count("i", 1, "bytes of a name"))
            calls = reader.number("i")
            values = reader.count("i", 4, "values")
            if not values or calls < 0:
                raise reader.invalid(
                    f"{shown(name)} has {values} values of {calls} calls; takes 1 or more of 0 or more"
                )
            sums = np.frombuffer(reader.take(4 * values), "<f4")
            found[name] = (sums / np.float32(max(calls, 1))).tolist()
        return found
