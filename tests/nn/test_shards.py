"""Parts of stored tensors for the ranks of a process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, error, nn
from metal_candle.formats.reading import OpenFile
from metal_candle.nn.var_builder import Shard, ShardedSafeTensors, ShardedVarBuilder

import numpy as np
import pytest

WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    mc.safetensors.save(
        {
            "a.weight": Tensor.new(WEIGHT),
            "a.half": Tensor.new(WEIGHT).to_dtype("bf16"),
            "a.exact": Tensor.new(WEIGHT.astype(np.float64), "cpu"),
            "cube": Tensor.new(WEIGHT.reshape(2, 3, 4)),
            "empty": Tensor.zeros((4, 0)),
            "scalar": Tensor.new(1.0),
        },
        tmp_path / "w.safetensors",
    )
    return tmp_path / "w.safetensors"


@pytest.fixture
def vb(path: Path) -> ShardedVarBuilder:
    return ShardedSafeTensors.var_builder([path], DType.F32)


@pytest.mark.parametrize("name", ["weight", "half", "exact"])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("world", [1, 2])
def test_parts_make_up_the_whole(vb: ShardedVarBuilder, name: str, dim: int, world: int) -> None:
    parts = [vb.pp("a").get_with_hints((4, 6), name, Shard(dim, rank, world)) for rank in range(world)]
    assert all(part.dtype is DType.F32 for part in parts)
    for part, want in zip(parts, np.split(WEIGHT, world, dim)):
        np.testing.assert_array_equal(part.numpy(), want)


def test_other_dims_and_shapes(vb: ShardedVarBuilder) -> None:
    for dim, world in ((0, 2), (1, 3), (2, 2)):
        for rank, want in enumerate(np.split(WEIGHT.reshape(2, 3, 4), world, dim)):
            # The part's own shape is as good as the tensor's.
            for shape in ((2, 3, 4), want.shape):
                got = vb.get_with_hints(shape, "cube", Shard(dim, rank, world))
                np.testing.assert_array_equal(got.numpy(), want)
    assert vb.get_with_hints((4, 0), "empty", Shard(0, 1, 2)).dims() == [2, 0]
    assert vb.get_with_hints((4, 0), "empty", Shard(1, 1, 2)).dims() == [4, 0]
    assert vb.get((4, 6), "a.weight").dims() == [4, 6]
    half = vb.get_with_hints_dtype((4, 6), "a.weight", Shard(0, 0, 4), "f16")
    assert (half.dims(), half.dtype) == ([1, 6], DType.F16)
    assert vb.contains_tensor("cube")
    assert set(vb.unused()) == {"a.half", "a.exact", "scalar"}


def test_along_the_first_dim_only_the_part_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = OpenFile.read

    def counted(self: OpenFile, begin: int, end: int) -> bytearray:
        sizes.append(end - begin)
        return original(self, begin, end)

    monkeypatch.setattr(OpenFile, "read", counted)
    vb = ShardedSafeTensors.var_builder(path, DType.F32)
    sizes.clear()
    vb.get_with_hints((4, 6), "a.weight", Shard(0, 3, 4))
    assert sizes == [24]


def test_a_part_of_a_view(path: Path) -> None:
    view = mc.safetensors.MmapedSafetensors.new(path).get("a.weight")
    np.testing.assert_array_equal(view.load_part(-1, 1, 3).numpy(), WEIGHT[:, 1:3])
    np.testing.assert_array_equal(view.load_part(0, 4, 4).numpy(), WEIGHT[4:])
    with pytest.raises(error.DimOutOfRangeError, match=r"^load_part: dim 2 is out of range for shape \(4, 6\)"):
        view.load_part(2, 0, 1)
    for start, stop in ((3, 5), (-1, 2), (2, 1)):
        with pytest.raises(error.NarrowInvalidArgsError):
            view.load_part(0, start, stop)


def test_shards() -> None:
    assert Shard.default() == Shard() == Shard(dim=0, rank=0, world_size=1)
    for bad in ((0, 2, 2), (0, -1, 2), (-1, 0, 1), (0, 0, 0)):
        with pytest.raises(
            error.ArgumentValueError, match=r"^Shard: got dim .* takes dim >= 0, 0 <= rank < world_size$"
        ):
            Shard(*bad)


@pytest.mark.parametrize(
    ("shape", "name", "hints", "kind", "text"),
    [
        ((4, 6), "a.weight", Shard(0, 0, 3), error.ShapeMismatchSplitError, r"dim 0 of shape \(4, 6\) does not divide"),
        ((4, 6), "a.weight", Shard(2, 0, 2), error.DimOutOfRangeError, r"^get a\.weight: dim 2 is out of range"),
        ((), "scalar", Shard(0, 0, 2), error.DimOutOfRangeError, "a scalar has no dimensions"),
        ((4, 6), "a.wieght", Shard(0, 0, 2), error.CannotFindTensorError, "nearest: a.weight"),
        ((4, 6), "a.wieght", Shard(), error.CannotFindTensorError, "nearest: a.weight"),
        ((4, 5), "a.weight", Shard(), error.UnexpectedShapeError, r"expected shape \(4, 5\), got \(4, 6\)"),
        ((4, 5), "a.weight", Shard(0, 1, 2), error.UnexpectedShapeError, r"^a.weight, part 1 of 2: .*got \(2, 6\)$"),
        ((4, 6), "a.weight", nn.init.ZERO, error.ArgumentTypeError, "^get a.weight: got a Const for the hints; takes"),
    ],
)
def test_what_it_refuses(
    vb: ShardedVarBuilder, shape: Any, name: str, hints: Any, kind: type[mc.Error], text: str
) -> None:
    with pytest.raises(kind, match=text):
        vb.get_with_hints(shape, name, hints)
    with pytest.raises(error.ArgumentValueError, match=r"^get_unchecked .*: parts have hints"):
        vb.get_unchecked(name)


class Counting:
    """A backend of hints of its own."""

    class Hints:
        @classmethod
        def default(cls) -> str:
            return "none"

    def __init__(self) -> None:
        self.hints: list[str] = []

    def get(self, shape: Any, name: str, hints: str, dtype: DType, dev: mc.Device) -> Tensor:
        self.hints.append(hints)
        return Tensor.zeros(shape, dtype, dev)

    def get_unchecked(self, name: str, dtype: DType, dev: mc.Device) -> Tensor:
        return Tensor.zeros((), dtype, dev)

    def contains_tensor(self, name: str) -> bool:
        return True


def test_hints_of_ones_own() -> None:
    backend = Counting()
    vb = nn.var_builder.VarBuilderArgs.new_with_args(backend, "f16", "cpu")
    assert vb.pp("a").get(3, "w").dims() == [3]
    assert vb.get_with_hints(3, "w", "mine").dtype is DType.F16
    assert backend.hints == ["none", "mine"]
    with pytest.raises(error.ArgumentTypeError, match=r"^new_with_args: got 3, which has no get and no get_unchecked"):
        nn.var_builder.VarBuilderArgs.new_with_args(3, "f16")  # type: ignore[arg-type]
