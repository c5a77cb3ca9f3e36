"""Damaged GGUF files: one clear error each, nothing read out of bounds."""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import Error, IoError, ModelError, NotFoundError
from metal_candle.formats.gguf import GGUFHeader, read_gguf_header, read_tensor_bytes
from metal_candle.formats.gguf_value import Value
from metal_candle.formats.gguf_writer import write_gguf
from metal_candle.quantized import ggml_file, gguf_file, imatrix_file

import pytest
from gguf_bytes import WHOLE, by_hand, entries, info, text
from hypothesis import given, settings
from hypothesis import strategies as st


def read_all(whole: bytes) -> tuple[GGUFHeader, dict[str, bytes]]:
    header = read_gguf_header(whole)
    return header, {name: read_tensor_bytes(whole, tensor).tobytes() for name, tensor in header.tensors.items()}


def test_every_truncation_is_one_clear_error() -> None:
    last = read_gguf_header(WHOLE).tensors["b"].end
    for size in range(last):
        with pytest.raises(ModelError.InvalidFormat) as raised:
            read_gguf_header(WHOLE[:size])
        assert "\n" not in str(raised.value)
    read_all(WHOLE[:last])  # what follows the last tensor is padding


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 64)
)
@settings(max_examples=300, deadline=None)
def test_damage_is_read_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    """Nothing but an error of ours, or content from inside the file."""
    whole = bytearray(WHOLE)
    for place, byte in changes:
        whole[place] = byte
    del whole[len(whole) - cut :]
    try:
        header, tensors = read_all(bytes(whole))
    except ModelError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.isprintable()
        return
    for name, tensor in header.tensors.items():
        assert header.data_start <= tensor.begin < tensor.end <= len(whole)
        assert tensors[name] == bytes(whole[tensor.begin : tensor.end])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_behind_the_magic_is_refused_or_empty(noise: bytes) -> None:
    for start in (b"GGUF\x01\0\0\0", b"GGUF\x03\0\0\0"):
        try:
            header = read_gguf_header(start + noise)
        except ModelError:
            continue
        assert all(tensor.end <= len(noise) + 8 for tensor in header.tensors.values())


ONE = bytes(4)
ALIGNED = bytes(32) + ONE


def pair(kind: int, content: bytes) -> bytes:
    return text("k", 3) + struct.pack("<I", kind) + content


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (b"", "the file is empty"),
        (b"GG", "not a GGUF file"),
        (b"PK\x03\x04rest", "not a GGUF file"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "more than its 24 bytes hold"),
        (b"GGUF\x01\x00\x00\x00" + b"\xff" * 8, "more than its 16 bytes hold"),
        (by_hand(3, [pair(13, b"")], [], b""), "metadata of unknown type 13"),
        (by_hand(3, [pair(7, b"\x02")], [], b""), "is 2; takes 0 or 1"),
        (by_hand(3, [pair(8, struct.pack("<Q", 2) + b"\xff\xfe")], [], b""), "is not UTF-8"),
        (by_hand(3, [pair(8, struct.pack("<Q", 2**63))], [], b""), "truncated inside its header"),
        (by_hand(3, [pair(9, struct.pack("<IQ", 8, 2**40))], [], b""), "claims 1099511627776 strings"),
        (by_hand(3, [pair(9, struct.pack("<IQ", 4, 2**62))], [], b""), "numbers, more than"),
        (by_hand(3, [pair(9, struct.pack("<IQ", 9, 99))], [], b""), "claims 99 arrays"),
        (by_hand(3, 2 * [pair(0, b"\x01")], [], b""), "metadata key k is there twice"),
        (by_hand(3, [text("general.alignment", 3) + struct.pack("<II", 4, 0)], [], b""), "alignment is 0"),
        (by_hand(3, [], [info("t", (1,), 0, 0)] * 2, ALIGNED), "tensor t is there twice"),
        (by_hand(3, [], [info("t", (2,), 0, 0), info("u", (1,), 0, 0)], ALIGNED), "tensors . and . overlap"),
        (by_hand(3, [], [info("t", (9,), 0, 0), info("u", (1,), 0, 32)], ALIGNED + ONE), "t and u overlap at byte"),
        (by_hand(3, [], [info("t", (1,), 0, 4)], ALIGNED), "starts at 4, which is no multiple of 32"),
        (by_hand(3, [], [info("t", (1,), 0, 64)], ALIGNED), "truncated: tensor t ends at byte"),
        (by_hand(3, [], [info("t", (1,), 0, 2**64 - 32)], ALIGNED), "truncated: tensor t ends"),
        (by_hand(3, [], [info("t", (2**60, 2**60), 0, 0)], ALIGNED), "truncated: tensor t ends"),
        (by_hand(3, [], [info("t", (0,), 0, 0)], ALIGNED), r"tensor t is empty: shape \(0,\)"),
        (by_hand(3, [], [info("t", (1,) * 5, 0, 0)], ALIGNED), "has 5 dimensions; takes 1 to 4"),
        (by_hand(3, [], [info("t", (), 0, 0)], ALIGNED), "tensor t has 0 dimensions; takes 1 to 4"),
        (
            by_hand(3, [], [info("t\n" + "k" * 100_000, (1,) * 5, 0, 0)], ALIGNED),
            r"tensor t\\nk{48,60}…k{20,30} has 5 dim",
        ),
        (by_hand(3, [], [info("t", (33,), 2, 0)], ALIGNED), "rows of 33 do not divide into blocks of 32"),
        (by_hand(3, [], [info("t", (1,), 2, 0)], ALIGNED), "rows of 1 do not divide into blocks of 32"),
        (by_hand(3, [], [info("t", (32,), 20, 0)], ALIGNED), "tensor t is IQ4_NL, which is not read; takes F32"),
        (by_hand(3, [], [info("t", (32,), 99, 0)], ALIGNED), "tensor t is of type 99"),
    ],
)
def test_damaged_files_are_described(tmp_path: Path, whole: bytes, message: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    for source in (path, whole):
        with pytest.raises(ModelError.InvalidFormat, match=message):
            read_gguf_header(source)


@pytest.mark.parametrize(("version", "message"), [(4, "found 4 in"), (0, "found 0 in"), (3 << 24, "big-endian")])
def test_other_versions_are_refused(version: int, message: str) -> None:
    with pytest.raises(ModelError.IncompatibleVersion, match=f"expected GGUF 1, 2 or 3, .*{message}"):
        read_gguf_header(b"GGUF" + struct.pack("<I", version))


def test_a_file_that_shrank_or_went_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(WHOLE)
    tensor = read_gguf_header(path).tensors["half"]
    path.write_bytes(WHOLE[: tensor.end - 1])
    with pytest.raises(ModelError.InvalidFormat, match=r"a\.gguf: truncated inside a tensor"):
        read_tensor_bytes(path, tensor)
    path.unlink()
    with pytest.raises(NotFoundError, match=r"a\.gguf: no such file"):
        read_tensor_bytes(path, tensor)


@pytest.mark.parametrize("read", [gguf_file.Content.read, ggml_file.Content.read, imatrix_file.load_imatrix])
def test_files_that_cannot_be_read_are_errors_as_of_other_formats(tmp_path: Path, read: Callable[[Any], Any]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "closed").write_bytes(WHOLE)
    closed = (tmp_path / "closed").open("rb")
    closed.close()
    for source, message in [
        (tmp_path, "is a folder; takes a file"),
        (tmp_path / "fifo", "is no regular file"),
        (f"{tmp_path}/a\0b", "no file can have this name"),
        (tmp_path / "closed" / "a", "Not a directory"),
        (closed, "the file is closed"),
        (io.StringIO("GGUF"), "is open for text"),
    ]:
        with pytest.raises(IoError, match=message):
            read(source)
    with pytest.raises(NotFoundError, match="absent: no such file"):
        read(tmp_path / "absent")
    with pytest.raises(Error, match="read: got int; takes a path, a binary file or bytes"):
        read(3)


def test_a_file_that_gives_little_at_a_time_is_read() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(3, size if size is not None and size >= 0 else 3))

    assert read_gguf_header(Slow(WHOLE)) == read_gguf_header(WHOLE)


def test_an_open_file_that_takes_no_more_is_an_error(tmp_path: Path) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:100]))

    values, tensors = {"a": Value.U32(1)}, entries()
    with pytest.raises(IoError, match="No space left on device"):
        write_gguf(Full(), values, tensors)  # type: ignore[arg-type]
    slow, whole = Slow(), io.BytesIO()
    write_gguf(slow, values, tensors)
    write_gguf(whole, values, tensors)
    assert slow.getvalue() == whole.getvalue()
