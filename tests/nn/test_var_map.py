"""``VarMap``: variables made on demand and shared, set, saved and loaded all or none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, error, nn
from metal_candle.formats.reading import OpenFile

import numpy as np
import pytest


def filled(*names: str, dtype: str = "f32") -> nn.VarMap:
    """Variables of (2,), 1.0 and 1.0 each."""
    varmap = nn.VarMap()
    for name in names:
        varmap.get(2, name, nn.init.ONE, dtype)
    return varmap


def values(varmap: nn.VarMap) -> dict[str, Any]:
    return {name: var.to_dtype("f64").to_vec1() for name, var in varmap.data().items()}


def test_variables_are_made_on_demand_and_shared() -> None:
    varmap = nn.VarMap.new()
    vb = nn.VarBuilder.from_varmap(varmap, DType.F32)
    layer, same = nn.linear(4, 2, vb.pp("a")), nn.linear(4, 2, vb.pp("a"))
    norm = nn.rms_norm(4, 1e-5, vb.pp("norm"))
    table = nn.embedding(10, 4, vb.pp("table"))
    assert list(varmap.data()) == ["a.weight", "a.bias", "norm.weight", "table.weight"]
    assert [var.dims() for var in varmap.all_vars()] == [[2, 4], [2], [4], [10, 4]]
    assert norm.weight().to_vec1() == [1.0] * 4
    assert table.embeddings().dims() == [10, 4]
    varmap.set_one("a.weight", Tensor.ones((2, 4)))
    assert layer.weight().to_vec2() == same.weight().to_vec2() == [[1.0] * 4] * 2
    loss = layer.forward(table.forward(Tensor([1]))).sum_all()
    grads = loss.backward()
    assert {name for name, var in varmap.data().items() if var in grads} == {"a.weight", "a.bias", "table.weight"}
    assert vb.unused() == []
    assert vb.contains_tensor("norm.weight")
    assert not vb.contains_tensor("norm")
    assert vb.get(3, "zeros").to_vec1() == [0.0] * 3


def test_a_variable_that_is_there() -> None:
    varmap = filled("w")
    # As in candle its dtype stays.
    assert varmap.get(2, "w", nn.init.ZERO, "f16").dtype is DType.F32
    assert nn.VarBuilder.from_varmap(varmap, "bf16").get(2, "w").to_vec1() == [1.0, 1.0]
    assert nn.VarBuilder.from_varmap(varmap, "bf16").get(2, "x").dtype is DType.BF16
    with pytest.raises(error.UnexpectedShapeError, match=r"^w: expected shape \(3,\), got \(2,\)$"):
        varmap.get(3, "w", nn.init.ZERO, "f32")
    text = r"^get_unchecked w: a VarMap makes tensors, so it needs their shape; takes get\(shape, name\)$"
    with pytest.raises(error.ArgumentValueError, match=text):
        nn.VarBuilder.from_varmap(varmap, "f32").get_unchecked("w")


def test_handles_share() -> None:
    varmap = filled("a")
    other = varmap.clone()
    other.get(2, "b", nn.init.ZERO, "f32")
    varmap.data()["c"] = Var.new([5.0])
    assert list(varmap.data()) == list(other.data()) == ["a", "b", "c"]


def test_threads_that_ask_at_once_get_one_variable() -> None:
    varmap = nn.VarMap()
    start = threading.Barrier(4)
    got: list[Tensor] = []

    def ask() -> None:
        start.wait()
        got.append(varmap.get(2, "w", nn.init.DEFAULT_KAIMING_NORMAL, "f32"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(tensor.to_vec1()) for tensor in got}) == 1


# --- set --------------------------------------------------------------------------------------


def test_setting() -> None:
    varmap = filled("a", "b")
    seen = varmap.data()["a"].as_tensor()
    varmap.set({"a": Tensor([2.0, 3.0]), "b": LazyTensor.new([4.0, 5.0]) + 1.0})
    assert values(varmap) == {"a": [2.0, 3.0], "b": [5.0, 6.0]}
    assert seen.to_vec1() == [2.0, 3.0]
    varmap.set((name, Tensor([9.0, 9.0])) for name in "ab")
    varmap.set_one("b", np_tensor := Tensor.new(np.float32([1, 2])))
    assert values(varmap) == {"a": [9.0, 9.0], "b": [1.0, 2.0]}
    varmap.set({"a": varmap.data()["b"], "b": varmap.data()["a"]})
    assert values(varmap) == {"a": [1.0, 2.0], "b": [9.0, 9.0]}
    assert np_tensor.to_vec1() == [1.0, 2.0]
    varmap.set({})


def test_what_does_not_fit_changes_nothing() -> None:
    varmap = filled("a", "b", "c")
    before = values(varmap)
    good = Tensor([7.0, 7.0])
    with pytest.raises(error.CannotFindTensorError, match=r"^cannot find tensor bb; nearest: b$"):
        varmap.set({"a": good, "bb": good})
    with pytest.raises(error.UnexpectedShapeError, match=r"^b: expected shape \(2,\), got \(1,\)$"):
        varmap.set({"a": good, "b": Tensor([1.0])})
    with pytest.raises(error.UnexpectedDTypeError, match=r"^b: expected dtype f32, got f16$"):
        varmap.set_one("b", good.to_dtype("f16"))
    with pytest.raises(error.ArgumentTypeError, match=r"^set b: got a list; takes a tensor$"):
        varmap.set([("a", good), ("b", [1.0, 2.0])])  # type: ignore[list-item]
    with pytest.raises(mc.Error, match="index"):
        varmap.set({"a": good, "b": LazyTensor.new([1.0]).index_select(LazyTensor.new([0, 5]), 0)})
    with pytest.raises(error.VariablesError) as caught:
        varmap.set({"a": good, "zzz": good, "b": Tensor([1.0]), "c": good.to_dtype("f16")})
    assert str(caught.value) == (
        "set: 3 of 4 do not fit, nothing is changed: cannot find tensor zzz; there are a, b, c; "
        "b: expected shape (2,), got (1,); c: expected dtype f32, got f16"
    )
    kinds = [error.CannotFindTensorError, error.UnexpectedShapeError, error.UnexpectedDTypeError]
    assert [type(problem) for problem in caught.value.problems] == kinds
    assert values(varmap) == before


# --- files ------------------------------------------------------------------------------------


def test_saving_and_loading(tmp_path: Path) -> None:
    path = tmp_path / "vars.safetensors"
    varmap = nn.VarMap()
    for name, dtype in {"z.w": "f32", "a/b": "bf16", "ids": "u32", "é": "f16", "d": "f64", "u": "u8"}.items():
        varmap.get((), f"{name}.scalar", nn.Init.Const(3.0), dtype, "cpu")
        varmap.get((0, 3), f"{name}.empty", nn.Init.Const(3.0), dtype, "cpu")
        varmap.get((3, 2), name, nn.Init.Const(2.0), dtype, "cpu")
    varmap.save(path)
    first = path.read_bytes()
    other = nn.VarMap()
    for name, var in reversed(varmap.data().items()):
        other.get(var.shape, name, nn.init.ZERO, var.dtype, "cpu")
    seen = other.data()["z.w"].as_tensor()
    other.load(str(path))
    assert seen.to_vec2() == [[2.0, 2.0]] * 3
    for name, var in varmap.data().items():
        assert other.data()[name].dtype is var.dtype
        np.testing.assert_array_equal(other.data()[name].numpy(), var.numpy())
    # Equal variables give equal bytes, in whatever order they were made.
    other.save(path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    varmap = nn.VarMap()
    varmap.data()["w"] = Var.from_tensor(Tensor.arange(0.0, 6.0).reshape((2, 3)).t())
    varmap.save(tmp_path / "a")
    assert mc.safetensors.load(tmp_path / "a")["w"].to_vec2() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "vars.safetensors"
    filled("a").save(path)
    before = path.read_bytes()
    varmap = filled("a")
    varmap.data()["__metadata__"] = Var.new([1.0])
    with pytest.raises(error.SafeTensorError, match="no tensor can have the name __metadata__"):
        varmap.save(path)
    assert path.read_bytes() == before
    with pytest.raises(error.CheckpointError.SaveFailed):
        filled("a").save(path / "below a file")
    assert list(tmp_path.iterdir()) == [path]


def test_loading_fills_what_is_there_and_ignores_the_rest(tmp_path: Path) -> None:
    filled("a", "b", "extra").save(tmp_path / "f")
    varmap = nn.VarMap()
    varmap.get(2, "b", nn.init.ZERO, "f32")
    varmap.load(tmp_path / "f")
    assert values(varmap) == {"b": [1.0, 1.0]}
    nn.VarMap().load(tmp_path / "f")


def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    stored = {
        "good": Tensor([7.0, 7.0]),
        "long": Tensor([7.0] * 3),
        "half": Tensor([7.0, 7.0]).to_dtype("f16"),
        "ids": Tensor([7, 7]),
    }
    mc.safetensors.save(stored, path)
    for name, kind, text in (
        ("god", error.CannotFindTensorError, "^cannot find tensor god; nearest: good"),
        ("long", error.UnexpectedShapeError, r"^long: expected shape \(2,\), got \(3,\)$"),
        ("half", error.UnexpectedDTypeError, r"^half: expected dtype f32, got f16$"),
        ("ids", error.UnexpectedDTypeError, r"^ids: expected dtype f32, got i64$"),
    ):
        varmap = filled("good", name)
        with pytest.raises(kind, match=text):
            varmap.load(path)
        assert values(varmap)["good"] == [1.0, 1.0]
    varmap = filled("good", "god", "long", "half")
    with pytest.raises(error.VariablesError) as caught:
        varmap.load(path)
    assert str(caught.value) == (
        f"load {path}: 3 of 4 do not fit, nothing is changed: cannot find tensor god; nearest: good; "
        "long: expected shape (2,), got (3,); half: expected dtype f32, got f16"
    )
    assert values(varmap) == {name: [1.0, 1.0] for name in varmap.data()}
    many = filled(*(f"m{i}" for i in range(12)))
    with pytest.raises(error.VariablesError, match=r"12 of 12 do not fit.*; and 2 more$"):
        many.load(path)


def test_a_file_that_ends_early_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.safetensors"
    filled("a", "b").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    zeros = nn.VarMap()
    for name in "ab":
        zeros.get(2, name, nn.init.ZERO, "f32")
    with pytest.raises(error.SafeTensorError, match="truncated"):
        zeros.load(path)
    path.write_bytes(whole)
    original = OpenFile.read

    def cut(self: OpenFile, begin: int, end: int) -> bytearray:
        # The last tensor's bytes go between the header and they.
        return original(self, begin, end - 4 if end == len(whole) else end)

    monkeypatch.setattr(OpenFile, "read", cut)
    with pytest.raises(error.SafeTensorError, match="cut short since the file was opened"):
        zeros.load(path)
    assert values(zeros) == {"a": [0.0, 0.0], "b": [0.0, 0.0]}
    with pytest.raises(error.NotFoundError):
        zeros.load(tmp_path / "none")
    with pytest.raises(error.ArgumentTypeError, match=r"^load: got a list; takes a path$"):
        zeros.load([path])  # type: ignore[arg-type]


def test_shards_are_loaded(tmp_path: Path) -> None:
    mc.safetensors.save_sharded({name: Tensor([2.0, 2.0]) for name in "abc"}, tmp_path, max_shard_size=8)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        varmap = filled("a", "c")
        varmap.load(path)
        assert values(varmap) == {"a": [2.0, 2.0], "c": [2.0, 2.0]}


def test_it_prints_how_much_it_holds() -> None:
    varmap = nn.VarMap()
    assert repr(varmap) == "VarMap(0 vars, 0 elements)"
    nn.linear(3, 2, nn.VarBuilder.from_varmap(varmap, "f32"))
    assert repr(varmap) == "VarMap(2 vars, 8 elements)"


def test_training_goes_on_from_a_file(tmp_path: Path) -> None:
    def model(varmap: nn.VarMap) -> nn.Linear:
        return nn.linear(3, 2, nn.VarBuilder.from_varmap(varmap, "f32").pp("ln"))

    first, second = nn.VarMap(), nn.VarMap()
    trained, resumed = model(first), model(second)
    xs = Tensor.new(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))
    first.save(tmp_path / "f")
    second.load(tmp_path / "f")
    for varmap, layer in ((first, trained), (second, resumed)):
        opt = nn.AdamW.new_lr(varmap.all_vars(), 0.1)
        opt.backward_step(layer.forward(xs).sqr().sum_all())
    np.testing.assert_array_equal(trained.forward(xs).numpy(), resumed.forward(xs).numpy())
