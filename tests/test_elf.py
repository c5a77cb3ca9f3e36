"""``metal_candle.elf`` against a library written by hand and against real ones."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from metal_candle import openblas
from metal_candle.elf import check_complete, read_symbols

import pytest

# name, binding (0 local, 1 global, 2 weak), section (0 undefined)
SYMBOLS = [
    ("scipy_cblas_sgemm", 1, 5),
    ("weakling", 2, 5),
    ("malloc", 1, 0),
    ("hidden", 0, 5),
    ("maybe", 2, 0),
]


def library() -> bytes:
    """A 64-bit shared object: header, one loadable segment, .dynsym, .dynstr, three section headers."""
    names, table = b"\0", struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    for name, binding, section in SYMBOLS:
        table += struct.pack("<IBBHQQ", len(names), binding << 4 | 2, 0, section, 0x1000, 8)
        names += name.encode() + b"\0"
    dynsym_at = 64 + 56
    dynstr_at = dynsym_at + len(table)
    sections_at = dynstr_at + len(names)
    total = sections_at + 3 * 64
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, sections_at, 0, 64, 56, 1, 64, 3, 2
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, total, total, 0x1000)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 11, 2, 0, dynsym_at, len(table), 2, 1, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 2, 3, 2, 0, dynstr_at, len(names), 0, 0, 1, 0)
    return header + segment + table + names + sections


def test_symbols_of_a_known_library(tmp_path: Path) -> None:
    path = tmp_path / "known.so"
    path.write_bytes(library())
    symbols = read_symbols(path)
    assert symbols.defined == {"scipy_cblas_sgemm", "weakling"}
    assert symbols.undefined == {"malloc", "maybe"}


@pytest.mark.parametrize("length", [0, 10, 63, 64, 100, 200, len(library()) - 1])
def test_cut_library(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.so"
    path.write_bytes(library()[:length])
    with pytest.raises(ValueError, match=r"cut\.so: (cut off, has \d+ of \d+ bytes|not a 64-bit shared library)"):
        check_complete(path)


def test_segment_longer_than_the_file(tmp_path: Path) -> None:
    data = bytearray(library())
    data[64 + 32 : 64 + 40] = struct.pack("<Q", len(data) + 1)  # p_filesz
    path = tmp_path / "long.so"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"has {len(data)} of {len(data) + 1} bytes"):
        check_complete(path)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"\x7fELX"), (4, b"\x01"), (5, b"\x02"), (16, b"\x02\x00")],
    ids=["magic", "32-bit", "big-endian", "program"],
)
def test_other_files_are_refused(at: int, value: bytes, tmp_path: Path) -> None:
    data = bytearray(library())
    data[at : at + len(value)] = value
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="other: not a 64-bit shared library"):
        read_symbols(path)


def test_name_beyond_the_string_table(tmp_path: Path) -> None:
    data = bytearray(library())
    data[64 + 56 + 24 : 64 + 56 + 28] = struct.pack("<I", 5000)  # st_name of the first symbol
    path = tmp_path / "damaged.so"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.so: damaged symbol table"):
        read_symbols(path)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF libraries are Linux's")
def test_real_libraries() -> None:
    source, mlx = openblas.wheel_library(), openblas.mlx_library()
    assert source
    assert mlx
    offered = read_symbols(source)
    assert {"scipy_cblas_sgemm", "scipy_sgetrf_", "scipy_openblas_get_config"} <= offered.defined
    assert "malloc" in offered.undefined
    assert not offered.defined & offered.undefined
    assert "cblas_sgemm" in read_symbols(mlx).undefined
