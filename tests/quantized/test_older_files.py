"""Files from before GGUF, and importance matrices: read with every size checked."""

from __future__ import annotations

import struct
from pathlib import Path

from metal_candle import Device
from metal_candle.error import CannotFindTensorError, ModelError, NotFoundError
from metal_candle.formats.ggml_encode import encode
from metal_candle.quantized import GgmlDType, ggml_file, imatrix_file
from metal_candle.quantized.ggml_file import Content, HParams, VersionedMagic

import numpy as np
import pytest

NUMBERS = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)


def tensor(name: str, kind: int, shape: tuple[int, ...], data: bytes, before: int, align: bool) -> bytes:
    head = struct.pack(f"<III{len(shape)}I", len(shape), len(name.encode()), kind, *reversed(shape)) + name.encode()
    return head + bytes(-(before + len(head)) % 32 if align else 0) + data


def legacy(magic: bytes = b"tjgg", version: int | None = 3, quantised: bool = True) -> bytes:
    whole = magic + (b"" if version is None else struct.pack("<I", version))
    whole += struct.pack("<7I", 2, 3, 4, 5, 6, 7, 8)
    for word, score in ((b"\xff", -1.5), (b"the", 0.5)):
        whole += struct.pack("<I", len(word)) + word + struct.pack("<f", score)
    align = magic == b"tjgg"
    whole += tensor("norm", 0, (3,), np.float32([1, 2, 3]).tobytes(), len(whole), align)
    whole += tensor("half", 1, (2, 2), np.float16([1, 2, 3, 4]).tobytes(), len(whole), align)
    if quantised:
        whole += tensor("w", 2, (2, 64), encode(NUMBERS, "Q4_0").tobytes(), len(whole), align)
    return whole


def test_ggjt_v3(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(legacy())
    content = Content.read(path, Device.Cpu)
    assert content.magic is VersionedMagic.GgjtV3
    assert content.hparams == HParams(2, 3, 4, 5, 6, 7, 8)
    assert content.vocab.token_score_pairs == [(b"\xff", -1.5), (b"the", 0.5)]
    assert list(content.tensors) == ["norm", "half", "w"]
    assert content.tensors["half"].dequantize().tolist() == [[1, 2], [3, 4]]
    w = content.remove("w")
    assert (w.dtype(), w.shape(), w.device()) == (GgmlDType.Q4_0, (2, 64), Device.Cpu)
    assert w.data() == encode(NUMBERS, "Q4_0").tobytes()
    with pytest.raises(CannotFindTensorError, match="cannot find tensor w"):
        content.remove("w")


@pytest.mark.parametrize(
    ("magic", "version", "name"),
    [(b"lmgg", None, "GgmlUnversioned"), (b"fmgg", 1, "GgmfV1"), (b"tjgg", 1, "GgjtV1"), (b"tjgg", 2, "GgjtV2")],
)
def test_older_ones_have_floats_alone(magic: bytes, version: int | None, name: str) -> None:
    content = Content.read(legacy(magic, version, quantised=False))
    assert content.magic.name == name
    assert content.tensors["norm"].dequantize().tolist() == [1, 2, 3]
    with pytest.raises(ModelError.InvalidFormat, match=f"tensor w is Q4_0 of {name}, whose blocks were others"):
        Content.read(legacy(magic, version))


def test_every_truncation_and_changed_byte() -> None:
    whole, ends, messages = legacy(), [], []
    for size in range(len(whole)):
        try:
            Content.read(whole[:size])
            ends.append(size)
        except ModelError.InvalidFormat as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    assert len(ends) == 3  # behind the vocabulary and behind each tensor but the last the file is whole
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            content = Content.read(bytes(damaged))
        except ModelError:
            continue
        assert sum(q.storage_size_in_bytes() for q in content.tensors.values()) <= len(whole)


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (b"", "the file is empty"),
        (b"GGUF\x03\x00\x00\x00", "not a ggml, ggmf or ggjt file; a GGUF is read by gguf_file"),
        (b"tjgg" + struct.pack("<I", 9), "is Ggjt of version 9; takes GgmlUnversioned, GgmfV1"),
        (b"tjgg" + struct.pack("<8I", 3, 2**31, 0, 0, 0, 0, 0, 0), "claims 2147483648 tokens"),
        (legacy() + tensor("norm", 0, (1,), bytes(4), len(legacy()), True), "tensor norm is there twice"),
        (legacy() + struct.pack("<3I", 9, 1, 0), "has 9 dimensions; takes 1 to 4"),
        (legacy() + struct.pack("<3I", 1, 1, 99), "is of type 99; takes F32"),
        (legacy() + tensor("x", 2, (33,), b"", len(legacy()), True), "rows of 33 do not divide"),
        (legacy() + tensor("x", 0, (2**31,) * 4, b"", len(legacy()), True), "truncated inside tensor x"),
    ],
)
def test_damage_is_described(whole: bytes, message: str) -> None:
    with pytest.raises(ModelError.InvalidFormat, match=message):
        ggml_file.Content.read(whole)


# --- importance matrices ----------------------------------------------------------------------


def imatrix(entries: dict[str, tuple[int, list[float]]]) -> bytes:
    whole = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        whole += struct.pack("<i", len(name.encode())) + name.encode() + struct.pack("<ii", calls, len(values))
        whole += np.float32(values).tobytes()
    return whole


def test_imatrix(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(imatrix({"blk.0.w": (4, [1.0, 2.0, 0.1]), "é": (0, [3.0])}) + b"whatever follows")
    loaded = imatrix_file.load_imatrix(path)
    assert loaded == {"blk.0.w": [0.25, 0.5, float(np.float32(0.1) / np.float32(4))], "é": [3.0]}


def test_damaged_imatrices(tmp_path: Path) -> None:
    whole = imatrix({"a": (1, [1.0, 2.0]), "b": (2, [3.0])})
    for size in range(len(whole)):
        with pytest.raises(ModelError.InvalidFormat):
            imatrix_file.load_imatrix(whole[:size])
    refused = []
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            imatrix_file.load_imatrix(bytes(damaged))
        except ModelError.InvalidFormat as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(message.isprintable() for message in refused)
    with pytest.raises(ModelError.InvalidFormat, match="holds no entries"):
        imatrix_file.load_imatrix(struct.pack("<ii", 0, 0))
    with pytest.raises(ModelError.InvalidFormat, match="claims -1 entries"):
        imatrix_file.load_imatrix(struct.pack("<i", -1))
    with pytest.raises(ModelError.InvalidFormat, match="a has 0 values of 1 calls"):
        imatrix_file.load_imatrix(imatrix({"a": (1, []), "long name": (1, [1.0])}))
    with pytest.raises(NotFoundError, match=r"absent\.dat"):
        imatrix_file.load_imatrix(tmp_path / "absent.dat")
