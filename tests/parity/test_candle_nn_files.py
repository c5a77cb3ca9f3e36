"""Checkpoints between candle's own binding and ``VarBuilder``/``VarMap``: what one writes the other loads by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, Var, error, nn

import numpy as np
import pytest
import safetensors.numpy
from both import DTYPES, Operand, f32

utils = pytest.importorskip("candle.utils")
candle_nn = pytest.importorskip("candle.nn")

NAMES = {"scalar": (), "a.b.weight": (2, 3), "empty": (0, 2), "a/slash": (1,), "é": (2,)}


def operands() -> dict[str, Operand]:
    return {
        f"{dtype}.{name}": Operand(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype)
        for dtype in DTYPES
        for name, shape in NAMES.items()
    }


def variables() -> nn.VarMap:
    varmap = nn.VarMap()
    for name, operand in operands().items():
        varmap.data()[name] = Var.from_tensor(operand.ours(Tensor))
    return varmap


def test_what_candle_saves(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    utils.save_safetensors(str(path), {name: operand.theirs() for name, operand in operands().items()})
    vb = nn.VarBuilder.from_mmaped_safetensors([path], "f64", "cpu")
    blank = nn.VarMap()
    for name, operand in operands().items():
        shape = operand.values.shape
        assert vb.contains_tensor(name)
        np.testing.assert_array_equal(vb.get(shape, name).numpy(), operand.values)
        kept = vb.get_with_hints_dtype(shape, name, nn.init.ZERO, operand.dtype)
        assert kept.dtype is operand.dtype
        np.testing.assert_array_equal(kept.to_dtype("f64").numpy(), operand.values)
        blank.get(shape, name, nn.init.ONE, operand.dtype, "cpu")
    assert vb.unused() == []
    blank.load(path)
    for name, operand in operands().items():
        np.testing.assert_array_equal(blank.data()[name].to_dtype("f64").numpy(), operand.values)


def test_what_a_map_saves(tmp_path: Path) -> None:
    variables().save(tmp_path / "ours.safetensors")
    read = utils.load_safetensors(str(tmp_path / "ours.safetensors"))
    assert set(read) == set(operands())
    for name, operand in operands().items():
        tensor = read[name]
        assert str(tensor.dtype).lower() == str(operand.dtype)
        assert tuple(tensor.shape) == operand.values.shape
        assert np.array_equal(np.array(tensor.flatten_all().values()), operand.values.reshape(-1))
    # The reference reader of the format, which has no bfloat16 in NumPy.
    kept = nn.VarMap()
    kept.data().update({name: var for name, var in variables().data().items() if var.dtype is not DType.BF16})
    kept.save(tmp_path / "kept.safetensors")
    for name, array in safetensors.numpy.load_file(tmp_path / "kept.safetensors").items():
        np.testing.assert_array_equal(array, operands()[name].values)


def test_a_file_laid_out_as_candles_var_map_lays_it_out(tmp_path: Path) -> None:
    """``VarMap::save`` in Rust writes no metadata, and its entries in an order of their own."""
    names = {"ln.bias": [1.0, 2.0], "ln.weight": [3.0, 4.0]}
    header: dict[str, Any] = {}
    for at, name in enumerate(names):
        header[name] = {"dtype": "F32", "shape": [2], "data_offsets": [8 * at, 8 * at + 8]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.float32(values).tobytes() for values in names.values())
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(text)) + text + data)
    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, "f32").pp("ln")
    for name in ("weight", "bias"):
        vb.get(2, name)
    varmap.load(tmp_path / "f")
    assert {name: var.to_vec1() for name, var in varmap.data().items()} == {
        "ln.weight": [3.0, 4.0],
        "ln.bias": [1.0, 2.0],
    }


def test_layers_of_candle_go_on_here_and_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    xs = f32(generator.standard_normal((2, 3, 4)).astype(np.float32))
    weights = {
        "0.weight": generator.standard_normal((5, 4)),
        "0.bias": generator.standard_normal(5),
        "1.weight": generator.standard_normal((2, 5)),
        "1.bias": generator.standard_normal(2),
    }
    theirs = candle_nn.Sequential(candle_nn.Linear(4, 5), candle_nn.Linear(5, 2))
    theirs.load_state_dict({name: f32(array.astype(np.float32)).theirs() for name, array in weights.items()})
    utils.save_safetensors(str(tmp_path / "theirs"), theirs.state_dict())

    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, "f32")
    ours = nn.seq().add(nn.linear(4, 5, vb.pp(0))).add(nn.linear(5, 2, vb.pp(1)))
    varmap.load(tmp_path / "theirs")
    # float32, sums of 5 numbers of about 1
    np.testing.assert_allclose(ours.forward(xs.ours(Tensor)).numpy(), theirs(xs.theirs()).values(), atol=1e-5)

    varmap.set_one("0.bias", Tensor.zeros(5))
    varmap.save(tmp_path / "ours")
    theirs.load_state_dict(utils.load_safetensors(str(tmp_path / "ours")))
    assert theirs.state_dict()["0.bias"].values() == [0.0] * 5
    np.testing.assert_allclose(ours.forward(xs.ours(Tensor)).numpy(), theirs(xs.theirs()).values(), atol=1e-5)


def test_damaged_files_are_refused_by_both(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    mc.safetensors.save({"w": Tensor([1.0])}, path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:20], b"", struct.pack("<Q", 2**40) + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError)):
            utils.load_safetensors(str(path))
        with pytest.raises(error.SafeTensorError):
            nn.VarBuilder.from_mmaped_safetensors([path], "f32")
