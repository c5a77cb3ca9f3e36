"""The files llama.cpp had before GGUF: ``ggml``, ``ggmf`` and ``ggjt``, read with every size checked.

Layout: https://github.com/ggml-org/llama.cpp/blob/468ea24fb463/llama.cpp (``llama_file_loader``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .byte_reader import ByteReader, Source, opened
from .ggml_blocks import BLOCKS, TYPES, byte_count
from .reading import shown

# Files begin with these as a little-endian U32, so the letters stand backwards; then comes a version, but for ggml.
_MAGICS = {b"lmgg": "Ggml", b"fmgg": "Ggmf", b"tjgg": "Ggjt"}
_VERSIONS = {("Ggml", 0): "GgmlUnversioned", ("Ggmf", 1): "GgmfV1"} | {("Ggjt", v): f"GgjtV{v}" for v in (1, 2, 3)}
_HPARAMS = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
_FLOATS = ("F32", "F16")


class LegacyTensor(NamedTuple):
    """One tensor: its name, ggml type, row-major shape and blocks."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: bytes


class LegacyFile(NamedTuple):
    """All that a file holds. ``vocab`` are the tokens' bytes with their scores."""

    magic: str
    hparams: dict[str, int]
    vocab: list[tuple[bytes, float]]
    tensors: list[LegacyTensor]


def read_ggml(source: Source) -> LegacyFile:
    """Read a whole file.

    Raises ``NotFoundError``, ``IoError``, and ``ModelError.InvalidFormat`` for another file, a truncated one, a type
    that is not read, a tensor twice, and for quantised tensors before version 3 of ``ggjt``, whose blocks were
    others.
    """
    with opened(source) as reader:
        kind = _MAGICS.get(reader.take(min(4, reader.size)))
        if kind is None:
            raise reader.invalid("not a ggml, ggmf or ggjt file; a GGUF is read by gguf_file")
        version = 0 if kind == "Ggml" else reader.number("I")
        if (kind, version) not in _VERSIONS:
            raise reader.invalid(f"is {kind} of version {version}; takes {', '.join(_VERSIONS.values())}")
        magic = _VERSIONS[kind, version]
        hparams = dict(zip(_HPARAMS, reader.numbers("I", len(_HPARAMS))))
        if hparams["n_vocab"] * 8 > reader.size - reader.position:
            raise reader.invalid(f"claims {hparams['n_vocab']} tokens, more than its {reader.size} bytes hold")
        vocab = [_token(reader) for _ in range(hparams["n_vocab"])]
        tensors: dict[str, LegacyTensor] = {}
        while reader.position < reader.size:
            tensor = _tensor(reader, magic)
            if tensor.name in tensors:
                raise reader.invalid(f"tensor {shown(tensor.name)} is there twice")
            tensors[tensor.name] = tensor
        return LegacyFile(magic, hparams, vocab, list(tensors.values()))


def _token(reader: ByteReader) -> tuple[bytes, float]:
    word = reader.take(reader.number("I"), "its vocabulary")
    return word, reader.number("f")


def _tensor(reader: ByteReader, magic: str) -> LegacyTensor:
    rank, name_length, number = reader.numbers("I", 3)
    if not 1 <= rank <= 4:
        raise reader.invalid(f"the tensor before byte {reader.position} has {rank} dimensions; takes 1 to 4")
    if number not in TYPES:
        raise reader.invalid(f"the tensor before byte {reader.position} is of type {number}; takes {', '.join(BLOCKS)}")
    shape = tuple(reversed(reader.numbers("I", rank)))  # the file says the fastest first
    name, kind = reader.text(name_length), TYPES[number]
    if kind not in _FLOATS and magic != "GgjtV3":
        raise reader.invalid(
            f"tensor {shown(name)} is {kind} of {magic}, whose blocks were others; takes F32, F16 or GgjtV3"
        )
    if shape[-1] % BLOCKS[kind].elements:
        raise reader.invalid(
            f"tensor {shown(name)}: rows of {shape[-1]} do not divide into blocks of {BLOCKS[kind].elements}"
        )
    if magic.startswith("Ggjt"):
        reader.take(-reader.position % 32, "a tensor")
    return LegacyTensor(name, kind, shape, reader.take(byte_count(kind, math.prod(shape)), f"tensor {shown(name)}"))
