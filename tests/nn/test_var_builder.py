"""``VarBuilder``: every source, names and prefixes, conversion, laziness, errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, error, nn
from metal_candle.formats.reading import OpenFile
from metal_candle.safetensors import MmapedSafetensors

import mlx.core as mx
import numpy as np
import pytest
from stored_weights import (
    NAMES,
    SOURCES,
    arrays,
    from_npz,
    from_safetensors,
    saved,
    tensors,
)

# --- every source -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", SOURCES)
def test_stored_tensors_by_name(make: Callable[[Path], nn.VarBuilder], tmp_path: Path) -> None:
    vb = make(tmp_path)
    assert set(vb.unused()) == set(NAMES)
    for name, array in arrays().items():
        if "/" in name and make is from_npz:
            continue  # a place in a folder of the archive, which NumPy names otherwise
        assert vb.contains_tensor(name)
        tensor = vb.get(NAMES[name], name)
        assert isinstance(tensor, Tensor)
        assert (tuple(tensor.shape), tensor.dtype) == (NAMES[name], DType.F32)
        np.testing.assert_array_equal(tensor.numpy(), array)
        np.testing.assert_array_equal(vb.get_unchecked(name).numpy(), array)
    assert set(vb.unused()) <= {"odd/name with spaces"}
    inner = vb.pp("model").pp("layers").pp(0)
    assert inner.pp("q_proj").contains_tensor("weight")
    assert not inner.contains_tensor("q_proj")
    assert not vb.contains_tensor("model")
    half = inner.to_dtype("bf16").pp("q_proj").get((3, 4), "weight")
    want = Tensor.new(arrays()["model.layers.0.q_proj.weight"]).to_dtype("bf16")
    assert half.dtype is DType.BF16
    np.testing.assert_array_equal(half.numpy(), want.numpy())
    with pytest.raises(error.CannotFindTensorError, match=r"^cannot find tensor model\.layers\.0\.v_proj\.weight; n"):
        inner.pp("v_proj").get((3, 4), "weight")
    with pytest.raises(error.CannotFindTensorError, match=r"^cannot find tensor model\.layers\.0\.v_proj\.weight; n"):
        inner.pp("v_proj").get_unchecked("weight")
    with pytest.raises(error.UnexpectedShapeError, match=r"^model\.norm\.weight: expected shape \(5,\), got \(4,\)$"):
        vb.pp("model.norm").get(5, "weight")


def test_prefixes() -> None:
    vb = nn.VarBuilder.from_tensors(tensors(), "f32")
    inner = vb.pp("model").push_prefix("layers").pp(0)
    assert (inner.prefix(), inner.root().prefix(), vb.prefix()) == ("model.layers.0", "", "")
    assert inner.path("x") == "model.layers.0.x"
    assert inner.set_prefix("model.norm").get(4, "weight").dims() == [4]
    assert inner.set_prefix("").pp("").path("scale") == "scale"
    wrong: Any
    for wrong, got in ((None, "None"), (["a"], "a list"), (1.5, "1.5"), (vb, "a VarBuilder")):
        with pytest.raises(mc.ArgumentTypeError, match=f"^pp: got {got}; takes a name or a number$"):
            vb.pp(wrong)
        with pytest.raises(mc.ArgumentTypeError, match=f"^set_prefix: got {got}; takes a name or a number$"):
            vb.set_prefix(wrong)
    assert inner.clone().prefix() == inner.prefix()
    assert repr(inner) == f"VarBuilder[TensorMap, prefix 'model.layers.0', f32, {Device.default()!r}]"


def test_dtype_and_device_belong_to_the_builder() -> None:
    vb = nn.VarBuilder.from_tensors(tensors(), "f32", Device.Cpu)
    half = vb.set_dtype(DType.F16).set_device("cpu").pp("model.norm")
    assert (vb.dtype(), half.dtype(), half.device()) == (DType.F32, DType.F16, Device.Cpu)
    assert half.get(4, "weight").dtype is DType.F16
    assert half.get_unchecked("weight").dtype is DType.F16
    assert half.get_unchecked_dtype("weight", "f64").dtype is DType.F64
    assert half.get_with_hints_dtype(4, "weight", nn.init.ONE, "bf16").dtype is DType.BF16
    assert half.get_with_hints(4, "weight", nn.init.ONE).dtype is DType.F16


def test_what_need_not_be_converted_is_shared() -> None:
    var = Var.new([1.0, 2.0])
    vb = nn.VarBuilder.from_tensors({"w": var, "m": mx.array([1.0])}, "f32")
    taken = vb.get(2, "w")
    var.set(Tensor([3.0, 4.0]))
    assert taken.to_vec1() == [3.0, 4.0]
    assert taken.sqr().sum_all().backward()[var].to_vec1() == [6.0, 8.0]
    half = vb.to_dtype("f16").get(2, "w")
    assert half.to_dtype("f32").sum_all().backward()[var].to_vec1() == [1.0, 1.0]


@pytest.mark.parametrize("value", [LazyTensor.new([1.0]), [1.0], None])
def test_a_dictionary_of_something_else(value: Any) -> None:
    vb = nn.VarBuilder.from_tensors({"w": value}, "f32")
    lazy = "; eval\\(\\) makes one" if isinstance(value, LazyTensor) else ""
    with pytest.raises(error.ArgumentTypeError, match=f"^w: got .*; takes eager tensors and arrays{lazy}$"):
        vb.get(1, "w")


def test_zeros() -> None:
    vb = nn.VarBuilder.zeros("f16")
    assert vb.get((2,), "any.name").to_vec1() == [0.0, 0.0]
    assert nn.linear_b(3, 2, False, vb).bias() is None
    assert nn.linear_b(3, 2, True, vb).weight().dtype is DType.F16
    assert vb.contains_tensor("x")
    assert vb.unused() == []
    with pytest.raises(
        error.ArgumentValueError, match=r"^get_unchecked x: zeros need a shape; takes get\(shape, name\)$"
    ):
        vb.get_unchecked("x")


# --- integers ---------------------------------------------------------------------------------

EXACT = [
    (np.uint8([0, 255]), "bf16"),
    (np.int64([-256, 256]), "bf16"),
    (np.int64([2**24, -(2**24)]), "f32"),
    (np.int64([2**40]), "f32"),
    (np.int64([2**53]), "f64"),
    (np.int64([0, 2**32 - 1]), "u32"),
    (np.int16([-(2**15), 2**15 - 1]), "f32"),
    (np.uint32([2**31]), "i64"),
    (np.int64([7]), "i64"),
    (np.int64([]), "bf16"),
]
INEXACT = [
    (np.int64([3, 257]), "bf16", "257"),
    (np.int64([2049]), "f16", "2049"),
    (np.int64([70000]), "f16", "70000"),
    (np.int64([2**24 + 1]), "f32", "16777217"),
    (np.int64([2**63 - 1]), "f32", str(2**63 - 1)),
    (np.int64([2**63 - 1]), "f64", str(2**63 - 1)),
    (np.uint32([2**32 - 1]), "f32", str(2**32 - 1)),
    (np.int64([-1]), "u32", "-1"),
    (np.int32([-1]), "u32", "-1"),
    (np.int64([[1, 2], [300, 4]]), "u8", "300"),
    (np.int16([-(2**15), 2**15 - 1]), "bf16", "32767"),
]


@pytest.mark.parametrize(("values", "dtype"), EXACT)
def test_integers_are_converted_as_in_candle(values: Any, dtype: str) -> None:
    got = nn.VarBuilder.from_tensors({"ids": values}, dtype, "cpu").get(values.shape, "ids")
    assert got.dtype is DType.of(dtype)
    assert [int(x) for x in got.to_dtype("f64").to_vec1()] == values.tolist()


@pytest.mark.parametrize(("values", "dtype", "first"), INEXACT)
def test_integers_are_never_changed(values: Any, dtype: str, first: str) -> None:
    vb = nn.VarBuilder.from_tensors({"ids": values}, dtype, "cpu")
    stored = DType.of(values.dtype)
    with pytest.raises(error.ArgumentValueError, match=f"^ids: holds {first} as {stored}, which {dtype} cannot hold; "):
        vb.get(values.shape, "ids")
    kept = vb.get_with_hints_dtype(values.shape, "ids", nn.init.ZERO, stored)
    np.testing.assert_array_equal(kept.numpy(), values)


# --- safetensors ------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read of a file."""
    sizes: list[int] = []
    original = OpenFile.read

    def counted(self: OpenFile, begin: int, end: int) -> bytearray:
        sizes.append(end - begin)
        return original(self, begin, end)

    monkeypatch.setattr(OpenFile, "read", counted)
    return sizes


def test_only_what_is_asked_for_is_read(tmp_path: Path, read: list[int]) -> None:
    big = Tensor.zeros((1000, 10))
    vb = nn.VarBuilder.from_mmaped_safetensors([saved(tmp_path, big=big, other=big)], "f32")
    assert sum(read) < 2000  # the header
    read.clear()
    assert vb.contains_tensor("big")
    with pytest.raises(error.UnexpectedShapeError):
        vb.get((10, 1000), "big")
    with pytest.raises(error.CannotFindTensorError):
        vb.get((10, 1000), "bigger")
    assert read == []
    vb.pp("model").pp("norm").get(4, "weight")
    assert read == [16]
    vb.get((1000, 10), "big")
    assert read == [16, 40000]
    assert "other" in vb.unused()


def test_later_files_win(tmp_path: Path) -> None:
    mc.safetensors.save({"a": Tensor([1.0]), "b": Tensor([1.0])}, tmp_path / "1.safetensors")
    mc.safetensors.save({"b": Tensor([2.0]), "c": Tensor([2.0])}, tmp_path / "2.safetensors")
    paths = [tmp_path / "1.safetensors", str(tmp_path / "2.safetensors")]
    vb = nn.VarBuilder.from_mmaped_safetensors(paths, "f32")
    assert [vb.get(1, name).to_vec1() for name in "abc"] == [[1.0], [2.0], [2.0]]
    vb = nn.VarBuilder.from_mmaped_safetensors(paths[::-1], "f32")
    assert [vb.get(1, name).to_vec1() for name in "abc"] == [[1.0], [1.0], [2.0]]
    files = [MmapedSafetensors.new(path) for path in paths]
    for routing, want in ((None, 2.0), ({"b": 0}, 1.0)):
        source = nn.var_builder.SafeTensorWithRouting(files, routing)
        assert nn.VarBuilder.from_backend(source, "f32").get(1, "b").to_vec1() == [want]


def test_a_path_a_folder_and_an_index(tmp_path: Path) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    saved(whole, "model.safetensors")
    mc.safetensors.save_sharded(tensors(), sharded, max_shard_size=60)
    index = sharded / "model.safetensors.index.json"
    for path in (whole, whole / "model.safetensors", sharded, index):
        paths: list[Any] = [path, str(path), [path], (path,), iter([path])]
        for given in paths:
            vb = nn.VarBuilder.from_mmaped_safetensors(given, "f32")
            assert sorted(vb.unused()) == sorted(NAMES)
    # What a shard holds besides is not what the index says.
    stray = next(
        file for file in sorted(sharded.glob("model-*")) if "model.norm.weight" not in mc.safetensors.load(file)
    )
    mc.safetensors.save({**mc.safetensors.load(stray), "model.norm.weight": Tensor.zeros(4)}, stray)
    got = nn.VarBuilder.from_mmaped_safetensors(sharded, "f32").get(4, "model.norm.weight")
    np.testing.assert_array_equal(got.numpy(), arrays()["model.norm.weight"])
    (sharded / stray.name).unlink()
    with pytest.raises(error.NotFoundError, match=r"no such file, named in model\.safetensors\.index\.json"):
        nn.VarBuilder.from_mmaped_safetensors([sharded], "f32")


@pytest.mark.parametrize(
    ("paths", "kind", "text"),
    [
        ([], error.ArgumentValueError, "from_mmaped_safetensors: got no paths; takes one at least"),
        (3, error.ArgumentTypeError, "from_mmaped_safetensors: got 3; takes a list of paths, or one"),
        (b"a", error.ArgumentTypeError, "from_mmaped_safetensors: got b'a'; takes a list of paths, or one"),
        ([None], error.ArgumentTypeError, "from_mmaped_safetensors: got None among the paths; takes str or Path"),
        (["no.safetensors"], error.NotFoundError, "no.safetensors"),
    ],
)
def test_what_is_no_path(paths: Any, kind: type[mc.Error], text: str) -> None:
    with pytest.raises(kind, match=text):
        nn.VarBuilder.from_mmaped_safetensors(paths, "f32")


def test_files_that_are_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    vb = nn.VarBuilder.from_mmaped_safetensors([path], "f32")
    with path.open("r+b") as file:
        file.truncate(len(whole) - 200)
    last = max(NAMES)  # what is of one dtype lies in the order of the names
    with pytest.raises(error.SafeTensorError, match="cut short since the file was opened"):
        vb.get(NAMES[last], last)
    with pytest.raises(error.SafeTensorError, match="truncated"):
        nn.VarBuilder.from_mmaped_safetensors([path], "f32")
    with pytest.raises(error.SafeTensorError):
        nn.VarBuilder.from_buffered_safetensors(whole[:-1], "f32")
    with pytest.raises(error.NpyError):
        nn.VarBuilder.from_npz(path, "f32")
    with pytest.raises(error.PthError):
        nn.VarBuilder.from_pth(path, "f32")


PTH = Path(__file__).parents[1] / "formats" / "data"


def test_pytorch_checkpoints() -> None:
    vb = nn.VarBuilder.from_pth_with_state(PTH / "nested.pth", "f16", "state_dict", "cpu")
    assert vb.pp(0).get((3, 2), "weight").to_dtype("f32").to_vec2() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert vb.pp(1).get((), "num_batches_tracked").dtype is DType.F16
    assert vb.get_unchecked_dtype("1.num_batches_tracked", "i64").to_scalar() == 0
    assert vb.pp(0).contains_tensor("bias")
    assert not vb.pp(0).contains_tensor("bais")
    with pytest.raises(error.UnexpectedShapeError, match=r"^0\.weight: expected shape \(2, 3\), got \(3, 2\)$"):
        vb.get((2, 3), "0.weight")
    with pytest.raises(error.CannotFindTensorError, match=r"^cannot find tensor 0\.bais; nearest: 0\.bias"):
        vb.get(3, "0.bais")
    assert set(vb.unused()) == {"0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    with pytest.raises(error.PthError, match="stat_dict"):
        nn.VarBuilder.from_pth_with_state(PTH / "nested.pth", "f32", "stat_dict")


def test_the_keys_of_a_checkpoint_are_prefixes() -> None:
    vb = nn.VarBuilder.from_pth(PTH / "nested.pth", "f32")
    assert vb.pp("state_dict").pp(0).get(3, "bias").to_vec1() == [0.0, 1.0, 2.0]
    assert "state_dict.0.bias" not in vb.unused()
    assert "list.2.0" in vb.unused()


def test_threads_take_tensors_of_one_file(tmp_path: Path) -> None:
    vb, want = from_safetensors(tmp_path), arrays()
    wrong: list[str] = []

    def take() -> None:
        for name, shape in NAMES.items():
            if not np.array_equal(vb.get(shape, name).numpy(), want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert vb.unused() == []
