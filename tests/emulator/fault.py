"""What the emulator reports."""

from __future__ import annotations

KINDS = {
    "compile": "The text does not compile as C++.",
    "type": "The text does not pass Metal's type rules: address spaces, constness, halves.",
    "launch": "The launch is one that some back-end refuses or runs differently.",
    "bounds": "An access outside every buffer, array or thread's own memory.",
    "read-only": "A write to an input.",
    "uninitialised": "A read of threadgroup memory or of an output that nobody wrote.",
    "race": "Two accesses by different threads, one of them a write, that no barrier orders.",
    "divergence": "A barrier or a simdgroup operation that not all of its threads reach alike.",
    "uncovered": "An output element that nobody wrote, or not the whole of.",
    "arithmetic": "A shift by too much, or an integer divided by zero.",
    "endless": "A threadgroup that goes on and on, in one thread or through barriers.",
    "memory": "An access to memory that is not there, caught by the machine and not by a check.",
}


class Fault(Exception):
    """A kernel does what it must not.

    ``kind`` is a key of ``KINDS``. The message names the program and, where it applies, the thread, its threadgroup,
    the buffer, the index and the line of the body.
    """

    def __init__(self, kind: str, message: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"Fault: got kind {kind!r}; takes one of {', '.join(KINDS)}")
        super().__init__(message)
        self.kind = kind
