"""Streams: pieces are joined, cut and held back until both sides have a step."""

from __future__ import annotations

import itertools
import re
from typing import Any

import metal_candle as mc
from metal_candle import D, LazyTensor, StreamingBinOp, StreamingModule, StreamTensor, Tensor, Var, error
from metal_candle.streaming import BinOp, Map

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def values(stream: StreamTensor) -> Any:
    return None if stream.as_option() is None else stream.as_option().tolist()


def test_nothing() -> None:
    for nothing in (StreamTensor(), StreamTensor.empty(), StreamTensor(None)):
        assert nothing.as_option() is None
        assert nothing.shape() is None
        assert nothing.seq_len(7) == 0
        assert values(nothing.cat2(nothing, 0)) is None
        assert values(nothing.narrow(0, 0, 1)) is None
        assert [values(part) for part in nothing.split(0, 2)] == [None, None]
        assert values(nothing.apply(lambda x: x + 1.0)) is None
        assert repr(nothing) == "StreamTensor(empty)"


@KINDS
def test_a_piece(kind: Any) -> None:
    piece = StreamTensor.from_tensor(kind.new([[1.0, 2.0, 3.0]]))
    assert piece.shape() == (1, 3)
    assert piece.seq_len(D.Minus1) == 3
    assert isinstance(piece.as_option(), kind)
    assert repr(piece) == "StreamTensor([1, 3])"
    assert values(piece.narrow(1, 1, 1)) == [[2.0]]
    assert values(piece.narrow(1, 1, 9)) == [[2.0, 3.0]]
    assert values(piece.narrow(1, 3, 1)) is None
    assert [values(part) for part in piece.split(-1, 2)] == [[[1.0, 2.0]], [[3.0]]]
    assert [values(part) for part in piece.split(-1, 0)] == [None, [[1.0, 2.0, 3.0]]]
    assert [values(part) for part in piece.split(-1, 9)] == [[[1.0, 2.0, 3.0]], None]
    assert values(piece.apply(lambda x: x * 2.0)) == [[2.0, 4.0, 6.0]]
    joined = piece.cat2(StreamTensor(kind.new([[4.0]])), 1)
    assert values(joined) == [[1.0, 2.0, 3.0, 4.0]]
    assert values(joined.cat2(StreamTensor(), 1)) == values(StreamTensor().cat2(joined, 1)) == values(joined)
    piece.reset()
    assert piece.as_option() is None


@KINDS
def test_mistakes(kind: Any) -> None:
    piece = StreamTensor(kind.new([[1.0, 2.0, 3.0]]))
    with pytest.raises(error.DimOutOfRangeError):
        piece.seq_len(2)
    with pytest.raises(error.NarrowInvalidArgsError):
        piece.narrow(1, -1, 1)
    with pytest.raises(error.NarrowInvalidArgsError):
        piece.split(1, -1)
    with pytest.raises(error.ShapeMismatchError):
        piece.cat2(StreamTensor(kind.zeros((2, 2))), 1)
    with pytest.raises(mc.Error, match="StreamTensor: got list; takes a tensor or None"):
        StreamTensor([1.0])  # type: ignore[arg-type]
    with pytest.raises(mc.Error, match="got None; takes a tensor"):
        StreamTensor.from_tensor(None)  # type: ignore[arg-type]
    with pytest.raises(mc.Error, match="StreamingBinOp: got 'add'; takes a BinOp"):
        StreamingBinOp("add", 0)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(list(BinOp)),
    st.integers(0, 12),
    st.lists(st.integers(0, 12), max_size=4),
    st.lists(st.integers(0, 12), max_size=4),
    st.sampled_from([Tensor, LazyTensor]),
)
def test_pieces_of_any_length_give_what_the_whole_gives(
    op: BinOp, length: int, left: list[int], right: list[int], kind: Any
) -> None:
    rng = np.random.default_rng(length)
    whole = rng.uniform(1, 2, (2, 2, length)).astype(np.float32)
    streaming = StreamingBinOp.new(op, D.Minus1)

    def pieces(x: Any, cuts: list[int]) -> list[StreamTensor]:
        bounds = [0, *sorted(min(cut, length) for cut in cuts), length]
        spans = list(itertools.pairwise(bounds)) + [(length, length)] * (6 - len(bounds))
        return [StreamTensor(kind.from_numpy(x[:, a:b])) if a < b else StreamTensor() for a, b in spans]

    got = StreamTensor()
    for lhs, rhs in zip(pieces(whole[0], left), pieces(whole[1], right)):
        got = got.cat2(streaming.step(lhs, rhs), -1)
    if length == 0:
        assert got.as_option() is None
    else:
        want = streaming.forward(kind.from_numpy(whole[0]), kind.from_numpy(whole[1]))
        assert values(got) == want.tolist()
        assert isinstance(got.as_option(), kind)


def test_what_is_held_back() -> None:
    add = StreamingBinOp(BinOp.Add, 0)
    assert (add.op, add.dim) == (BinOp.Add, 0)
    assert values(add.step(StreamTensor(Tensor([1.0, 2.0])), StreamTensor())) is None
    assert values(add.step(StreamTensor(), StreamTensor(Tensor([10.0])))) == [11.0]
    add.reset_state()
    assert values(add.step(StreamTensor(), StreamTensor(Tensor([10.0])))) is None


def test_a_step_that_fails_leaves_what_was_held_back() -> None:
    add = StreamingBinOp(BinOp.Add, 0)
    add.step(StreamTensor(Tensor([1.0])), StreamTensor())
    with pytest.raises(error.DTypeMismatchError):
        add.step(StreamTensor(), StreamTensor(Tensor([1])))
    assert values(add.step(StreamTensor(), StreamTensor(Tensor([2.0])))) == [3.0]


def test_gradients_pass_through_a_stream() -> None:
    w = Var([1.0, 2.0, 3.0])
    mul = StreamingBinOp(BinOp.Mul, 0)
    first = mul.step(StreamTensor(w), StreamTensor(Tensor([4.0])))
    second = mul.step(StreamTensor(), StreamTensor(Tensor([5.0, 6.0])))
    loss = first.cat2(second, 0).as_option().sum_all()
    assert loss.backward()[w].to_vec1() == [4.0, 5.0, 6.0]


class Plus:
    def forward(self, xs: Any) -> Any:
        return xs + 1.0


def test_map_and_modules_of_one_s_own() -> None:
    for module in (Plus(), lambda xs: xs + 1.0):
        mapped = Map(module)
        assert isinstance(mapped, StreamingModule)
        assert values(mapped.step(StreamTensor(Tensor([1.0])))) == [2.0]
        assert values(mapped.step(StreamTensor())) is None
        mapped.reset_state()

    class Pairs(StreamingModule):
        """Holds one step back until its pair is there."""

        def __init__(self) -> None:
            self.held = StreamTensor()

        def step(self, xs: StreamTensor) -> StreamTensor:
            joined = self.held.cat2(xs, 0)
            even = joined.seq_len(0) // 2 * 2
            out, self.held = joined.split(0, even)
            return out

        def reset_state(self) -> None:
            self.held.reset()

    pairs = Pairs()
    assert values(pairs.step(StreamTensor(Tensor([1.0])))) is None
    assert values(pairs.step(StreamTensor(Tensor([2.0, 3.0])))) == [1.0, 2.0]
    pairs.reset_state()
    assert values(pairs.step(StreamTensor(Tensor([4.0, 5.0])))) == [4.0, 5.0]
    with pytest.raises(TypeError, match=re.escape("abstract")):
        StreamingModule()  # type: ignore[abstract]
