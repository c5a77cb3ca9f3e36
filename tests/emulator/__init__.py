"""Runs kernels for Apple's GPUs on any CPU with clang, and reports what is wrong with them. See README.md."""

from __future__ import annotations

from .fault import KINDS, Fault
from .launcher import Emulator
from .toolchain import available

__all__ = ["KINDS", "Emulator", "Fault", "available"]
