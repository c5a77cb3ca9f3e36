"""What a multiprocessor of an NVIDIA GPU holds, and how many threads of a kernel that is.

CUDA programming guide, table "Technical Specifications per Compute Capability", for 9.0.
"""

from __future__ import annotations

from compilation import Compiled

REGISTERS = 65536
"""Of a multiprocessor, and at most of a threadgroup."""
REGISTERS_OF_A_THREAD = 255
SHARED = 32 * 1024
"""Bytes of a threadgroup: Metal's limit. CUDA's is 48 KiB."""
THREADS = 2048
GROUPS = 32
SHARED_OF_ALL = 228 * 1024
# A threadgroup takes this much more for the system.
_RESERVED = 1024


def registers_of(compiled: Compiled, threads: int) -> int:
    """The registers that a threadgroup takes: given out by eight to a thread."""
    return -(-compiled.registers // 8) * 8 * threads


def occupancy(compiled: Compiled, threads: int) -> float:
    """The share of a multiprocessor's threads that run at a time."""
    groups = min(
        GROUPS,
        THREADS // threads,
        REGISTERS // max(1, registers_of(compiled, threads)),
        SHARED_OF_ALL // (compiled.shared + _RESERVED),
    )
    return groups * threads / THREADS
