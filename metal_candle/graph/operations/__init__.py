"""The records, a file per family. Importing this package fills the registry."""

from . import binary, fused, index, linalg, movement, norm, random, reduce, structure, unary, update

__all__ = [
    "binary",
    "fused",
    "index",
    "linalg",
    "movement",
    "norm",
    "random",
    "reduce",
    "structure",
    "unary",
    "update",
]
