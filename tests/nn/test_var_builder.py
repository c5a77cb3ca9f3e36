"""``VarBuilder``: every source, names and prefixes, conversion, laziness, errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, error, nn
from metal_candle.formats.reading import OpenFile
from metal_candle.npy import NpzTensors
from metal_candle.safetensors import MmapedSafetensors

import mlx.core as mx
import numpy as np
import pytest

NAMES = {
    "model.layers.0.q_proj.weight": (3, 4),
    "model.layers.0.k_proj.weight": (2, 4),
    "model.layers.1.q_proj.weight": (3, 4),
    "model.norm.weight": (4,),
    "scale": (),
    "nothing": (0, 4),
    "odd/name with spaces": (1,),
}


def arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in NAMES.items()}


def tensors() -> dict[str, Tensor]:
    return {name: Tensor.new(array) for name, array in arrays().items()}


def saved(folder: Path, name: str = "a.safetensors", **others: Any) -> Path:
    mc.safetensors.save({**tensors(), **others}, folder / name)
    return folder / name


def from_safetensors(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_mmaped_safetensors([saved(folder)], "f32")


def from_buffer(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_buffered_safetensors(saved(folder).read_bytes(), "f32")


def from_slice(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_slice_safetensors(memoryview(saved(folder).read_bytes()), "f32")


def from_npz(folder: Path) -> nn.VarBuilder:
    np.savez(folder / "a.npz", **arrays())
    return nn.VarBuilder.from_npz(folder / "a.npz", "f32")


def from_shards(folder: Path) -> nn.VarBuilder:
    mc.safetensors.save_sharded(tensors(), folder, max_shard_size=60)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return nn.VarBuilder.from_mmaped_safetensors([folder], "f32")


def from_backend(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_backend(MmapedSafetensors.new(saved(folder)), "f32")


def renamed(folder: Path) -> nn.VarBuilder:
    return from_safetensors(folder).rename_f(lambda name: name)


SOURCES: list[Callable[[Path], nn.VarBuilder]] = [
    lambda _: nn.VarBuilder.from_tensors(tensors(), "f32"),
    lambda _: nn.VarBuilder.from_tensors(arrays(), "f32"),
    from_safetensors,
    from_buffer,
    from_slice,
    from_npz,
    from_shards,
    from_backend,
    renamed,
]


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


# --- names that are not there -----------------------------------------------------------------

GPT2 = [f"transformer.h.{i}.{name}" for i in range(12) for name in ("ln_1.weight", "attn.c_attn.weight")]
GPT2 += ["transformer.wte.weight", "transformer.ln_f.weight"]
MISSING = [
    (["model.norm.weight"], "model.norm.weigth", "; nearest: model.norm.weight"),
    (["model.norm.weight"], "model.norm.zzzzzzzzzzzzzzzzzzzzzz", "; model.norm has weight"),
    ([], "a.b", "; there are no tensors"),
    (["a", "b"], "zzzz", "; there are a, b"),
    (
        GPT2,
        "model.layers.0.self_attn.q_proj.weight",
        "; nothing is below model; there are transformer.h, transformer.ln_f, transformer.wte",
    ),
    (
        GPT2,
        "transformer.h.12.ln_1.weight",
        "; nearest: transformer.h.0.ln_1.weight, transformer.h.1.ln_1.weight, transformer.h.2.ln_1.weight"
        "; nothing is below transformer.h.12; transformer.h has 0, 1, 2, 3, 4, 5, …, 11",
    ),
    (
        GPT2,
        "h.3.attn.c_attn.weight",
        "; nearest: transformer.h.3.attn.c_attn.weight; nothing is below h; "
        "there are transformer.h, transformer.ln_f, transformer.wte",
    ),
    (
        ["wte.weight", "h.0.w"],
        "transformer.wte.weight",
        "; nearest: wte.weight; nothing is below transformer; there are",
    ),
    ([""], "weight", '; there are ""'),
    (["a.b.weight", "a.c.weight"], "a.d.weight", "; nearest: a.c.weight, a.b.weight"),
]


@pytest.mark.parametrize(("names", "asked", "told"), MISSING)
def test_a_missing_tensor_is_named_with_what_there_is(names: list[str], asked: str, told: str) -> None:
    vb = nn.VarBuilder.from_tensors({name: Tensor([1.0]) for name in names}, "f32")
    with pytest.raises(KeyError) as caught:
        vb.get(1, asked)
    assert isinstance(caught.value, error.CannotFindTensorError)
    assert str(caught.value).startswith(f"cannot find tensor {asked}{told}")
    assert "\n" not in str(caught.value)
    assert caught.value.path == asked


def test_the_nearest_of_very_many_names() -> None:
    names = [f"model.layers.{i}.experts.{j}.{part}" for i in range(20) for j in range(100) for part in ("w1", "w2")]
    vb = nn.VarBuilder.from_tensors(dict.fromkeys(names), "f32")
    near = r"nearest: model\.layers\.3\.experts\.7\.w2, model\.layers\.3\.experts\.7\.w1$"
    with pytest.raises(KeyError, match=near):
        vb.get(1, "model.layers.3.experts.7.w3")
    # Prefixes that are not there, and files of unlike names.
    with pytest.raises(
        KeyError, match=r"; nearest: model\.layers\.3\.experts\.7\.w2; nothing is below language; there"
    ):
        vb.get(1, "language.model.layers.3.experts.7.w2")
    with pytest.raises(
        KeyError, match=r"^cannot find tensor zzz; there are model\.layers\.0, .*, …, model\.layers\.19$"
    ):
        vb.get(1, "zzz")


# --- other names ------------------------------------------------------------------------------


class Gamma(nn.var_builder.Renamer):
    def rename(self, v: str) -> str:
        return v.replace("gamma", "weight")


def test_renaming(tmp_path: Path) -> None:
    vb = from_safetensors(tmp_path)
    named = vb.rename_f(lambda name: name.replace("encoder", "model"))
    assert named.contains_tensor("encoder.norm.weight")
    assert named.contains_tensor("model.norm.weight")
    assert not named.contains_tensor("decoder.norm.weight")
    assert named.pp("encoder").pp("norm").get(4, "weight").dims() == [4]
    twice = named.rename(Gamma())
    assert twice.pp("encoder.norm").get(4, "gamma").dims() == [4]
    assert twice.pp("encoder.norm").get_unchecked("gamma").dims() == [4]
    assert "model.norm.weight" not in twice.unused()
    assert set(twice.unused()) == set(vb.unused())
    # Below the root candle would put the prefix in front once more.
    assert vb.pp("model").rename_f(lambda name: name.replace("n0rm", "norm")).get(4, "n0rm.weight").dims() == [4]
    assert named.to_dtype("f16").get(4, "encoder.norm.weight").dtype is DType.F16
    inner = nn.var_builder.Rename.new(vb.pp("model"), lambda name: name.upper().lower())
    assert nn.VarBuilder.from_backend(inner, "f32").get(4, "norm.weight").dims() == [4]
    varmap = nn.VarMap()
    nn.rms_norm(4, 1e-5, nn.VarBuilder.from_varmap(varmap, "f32").rename(Gamma()).pp("gamma"))
    assert list(varmap.data()) == ["weight.weight"]


def test_errors_show_the_name_before_and_after_renaming() -> None:
    vb = nn.VarBuilder.from_tensors({"model.norm.weight": Tensor([1.0])}, "f32")
    named = vb.rename_f(lambda name: name.replace("encoder", "model"))
    with pytest.raises(error.CannotFindTensorError) as caught:
        named.get(1, "encoder.norm.weigth")
    want = "cannot find tensor model.norm.weigth, asked for as encoder.norm.weigth; nearest: model.norm.weight"
    assert str(caught.value) == want
    assert (caught.value.path, caught.value.asked) == ("model.norm.weigth", "encoder.norm.weigth")
    with pytest.raises(error.UnexpectedShapeError) as shape:
        named.rename_f(lambda name: name.replace("e.", "encoder.")).get(2, "e.norm.weight")
    want = "model.norm.weight, asked for as e.norm.weight: expected shape (2,), got (1,)"
    assert str(shape.value) == want
    with pytest.raises(error.CannotFindTensorError, match=r"^cannot find tensor other; there are model\.norm\.weight$"):
        named.get_unchecked("other")
    with pytest.raises(error.ArgumentTypeError, match=r"^rename a: the renamer gave None; takes a name, a str$"):
        vb.rename_f({}.get).get(1, "a")  # type: ignore[arg-type]
    with pytest.raises(error.ArgumentTypeError, match=r"^rename: got 3; takes a function of a name, or a Renamer$"):
        vb.rename(3)  # type: ignore[arg-type]


# --- a source of one's own --------------------------------------------------------------------


class Doubled:
    """What merges adapters, say: another builder's tensors, changed. Derived from nothing."""

    def __init__(self, base: nn.VarBuilder) -> None:
        self.base = base
        self.asked: list[tuple[Any, ...]] = []

    def get(self, shape: Any, name: str, hints: nn.Init, dtype: DType, dev: Device) -> Tensor:
        self.asked.append((shape, name, hints, dtype, dev))
        return self.base.get_with_hints_dtype(shape, name, hints, dtype) * 2.0

    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        return self.base.get_unchecked_dtype(name, dtype) * 2.0

    def contains_tensor(self, name: str) -> bool:
        return self.base.contains_tensor(name)


def test_a_source_of_ones_own() -> None:
    own = Doubled(nn.VarBuilder.from_tensors({"a.weight": Tensor([[1.0, 2.0]])}, "f32"))
    vb = nn.VarBuilder.from_backend(own, "f16", "cpu")
    layer = nn.linear_no_bias(2, 1, vb.pp("a"))
    assert layer.weight().to_vec2() == [[2.0, 4.0]]
    assert own.asked == [((1, 2), "a.weight", nn.init.DEFAULT_KAIMING_NORMAL, DType.F16, Device.Cpu)]
    assert vb.pp("a").get_unchecked("weight").to_vec2() == [[2.0, 4.0]]
    assert vb.contains_tensor("a.weight")
    assert not vb.contains_tensor("a.bias")
    assert vb.unused() == []
    vb.get((1, 2), "a.weight")
    assert own.asked[-1][2] == nn.Init.default()


def test_what_is_no_source() -> None:
    class Half:
        def get(self) -> None: ...

    with pytest.raises(
        error.ArgumentTypeError,
        match=r"^from_backend: got a Half, which has no get_unchecked and no contains_tensor; takes an object "
        r"with get, get_unchecked and contains_tensor$",
    ):
        nn.VarBuilder.from_backend(Half(), "f32")
    with pytest.raises(error.ArgumentTypeError, match=r"^from_backend: got a type, a class; takes an object"):
        nn.VarBuilder.from_backend(Doubled, "f32")
    with pytest.raises(error.ArgumentTypeError, match=r"^from_varmap: got a dict; takes a VarMap$"):
        nn.VarBuilder.from_varmap({}, "f32")  # type: ignore[arg-type]
    with pytest.raises(
        error.ArgumentTypeError, match=r"^from_tensors: got a Tensor; takes a dict of names to tensors$"
    ):
        nn.VarBuilder.from_tensors(Tensor([1.0]), "f32")  # type: ignore[arg-type]

    class Incomplete(nn.var_builder.SimpleBackend):
        def contains_tensor(self, name: str) -> bool:
            return True

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()  # type: ignore[abstract]


def test_what_candle_makes_sources_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.float32([1, 2]))
    sources: list[Any] = [{"a": Tensor([1.0, 2.0])}, NpzTensors.new(tmp_path / "a.npz")]
    for source in sources:
        assert nn.VarBuilder.from_backend(source, "f32").get(2, "a").to_vec1() == [1.0, 2.0]
    varmap = nn.VarMap()
    nn.VarBuilder.from_backend(varmap, "f32").get(2, "a")
    assert list(varmap.data()) == ["a"]


def test_arguments_in_the_wrong_order() -> None:
    vb = nn.VarBuilder.zeros("f32")
    with pytest.raises(error.ArgumentTypeError, match=r"^get: got 'weight' for the shape; takes \(shape, name\)$"):
        vb.get("weight", (3, 4))  # type: ignore[arg-type]
    with pytest.raises(
        error.ArgumentTypeError, match=r"^get: got 4 for the name; takes \(shape, name\), the name a str$"
    ):
        vb.get(3, 4)  # type: ignore[arg-type]
    with pytest.raises(error.ArgumentTypeError, match="for the name"):
        vb.contains_tensor(3)  # type: ignore[arg-type]
