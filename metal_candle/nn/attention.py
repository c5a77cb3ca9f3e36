"""Attention over ``(b, s, h, d)``, with masks that need no tensor. candle: ``candle_nn::attention``.

candle has these as loops for the CPU (its ``cpu_flash``); here they are ``ops.sdpa`` on any device, with gradients.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..error import ArgumentTypeError, ArgumentValueError, DTypeMismatchError, ShapeMismatchBinaryOpError
from ..error.text import described
from ..graph.node import leaf
from ..graph.operations.counts import number
from ..shape import expect_rank
from ..tensor.arguments import expect_tensor
from ..tensor.base import TensorBase
from . import ops
from .capped_attention import capped_attention

T = TypeVar("T", bound=Any)
Numbers = np.ndarray[Any, Any]


class AttnMask:
    """Which keys a query sees: ``AttnMask.None_``, all of them; ``AttnMask.Causal(kv_offset)``, those up to its own
    place, ``kv_offset`` keys after the query's number; ``AttnMask.Mask(t)``, what a tensor of 0 and -inf says.

    ``None`` is a word of Python's, so candle's ``AttnMask::None`` has an underscore; the functions that take a mask
    take Python's ``None`` for it, too. Compared by content, a tensor by identity. candle: ``candle_nn::AttnMask``.
    """

    __slots__ = ("_kv_offset", "_tensor", "_variant")

    None_: ClassVar[AttnMask]

    def __init__(self, variant: str, kv_offset: int = 0, tensor: TensorBase | None = None) -> None:
        self._variant, self._kv_offset, self._tensor = variant, kv_offset, tensor

    @staticmethod
    def Causal(kv_offset: int) -> AttnMask:
        """Query i sees the keys up to ``i + kv_offset``; a single query all of them, as in candle.

        Raises ``ArgumentTypeError`` and ``ArgumentValueError`` for what is no count.
        """
        if not isinstance(kv_offset, (int, np.integer)) or isinstance(kv_offset, bool):
            raise ArgumentTypeError(f"AttnMask.Causal: got kv_offset {described(kv_offset)}; takes a count")
        if kv_offset < 0:
            raise ArgumentValueError(f"AttnMask.Causal: got kv_offset {kv_offset}; takes 0 or more")
        return AttnMask("Causal", int(kv_offset))

    @staticmethod
    def Mask(tensor: TensorBase) -> AttnMask:
        """What is added to the scores, ``(b, s_q, s_k)``, or of fewer or more dims what broadcasts to that and to
        ``(b, h, s_q, s_k)``. Raises ``ArgumentTypeError`` for what is no tensor.
        """
        expect_tensor("AttnMask.Mask", tensor)
        return AttnMask("Mask", tensor=tensor)

    @staticmethod
    def causal() -> AttnMask:
        """``Causal(0)``: no keys before the queries'."""
        return AttnMask.Causal(0)

    @staticmethod
    def causal_with_offset(kv_offset: int) -> AttnMask:
        """``Causal(kv_offset)``: with so many keys from a cache before the queries'."""
        return AttnMask.Causal(kv_offset)

    @staticmethod
    def default() -> AttnMask:
        """``None_``."""
        return AttnMask.None_

    def is_causal(self) -> bool:
        """Whether it is ``Causal``."""
        return self._variant == "Causal"

    def kv_offset(self) -> int:
        """The number of keys before the queries'; 0 unless it is ``Causal``."""
        return self._kv_offset

    def tensor(self) -> TensorBase | None:
        """The tensor of ``Mask``."""
        return self._tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttnMask):
            return NotImplemented
        same = (self._variant, self._kv_offset) == (other._variant, other._kv_offset)
        return same and self._tensor is other._tensor

    def __hash__(self) -> int:
        return hash((self._variant, self._kv_offset, id(self._tensor)))

    def __repr__(self) -> str:
        if self._tensor is not None:
            return f"AttnMask.Mask({self._tensor!r})"
        return f"AttnMask.Causal(kv_offset={self._kv_offset})" if self.is_causal() else "AttnMask.None_"


AttnMask.None_ = AttnMask("None")


def flash_attn(
    q: T,
    k: T,
    v: T,
    softmax_scale: float,
    attn_mask: AttnMask | None = None,
    max_bias: float | None = None,
    softcap: float | None = None,
) -> T:
    """softmax(softmax_scale · q · kᵀ + mask) · v: q ``(b, s, h, d)``, k and v ``(b, t, kv, d)`` with h a multiple of
    kv, to ``(b, h, s, d)`` in q's dtype.

    A ``max_bias`` above 0 is ALiBi's: head i of h has the slope ``2^(-max_bias · (i + 1) / n)``, n the next power of 2
    from h on, by which the distance of a key lowers its score, and which a mask tensor is multiplied by instead
    (Press et al. 2021, https://arxiv.org/abs/2108.12409). A ``softcap`` above 0 replaces the scores by
    ``softcap · tanh(scores / softcap)`` before that.

    Unlike candle's, for any b, dtype and device alike. There, of several sequences a causal mask is aligned to the
    last key whatever its offset, and a mask tensor and ``softcap`` are refused; of a single one without a mask
    ``max_bias`` has no effect, and the result of halves is F32.

    Raises ``UnexpectedNumberOfDimsError``, ``ShapeMismatchBinaryOpError`` and ``DTypeMismatchError`` for tensors that
    do not fit, ``ArgumentTypeError`` and ``ArgumentValueError`` for other arguments. candle: ``candle_nn::flash_attn``.
    """
    _expect_shapes(q, k, v)
    mask = AttnMask.None_ if attn_mask is None else attn_mask
    if not isinstance(mask, AttnMask):
        raise ArgumentTypeError(f"flash_attn: got mask {described(mask)}; takes an AttnMask")
    slopes = _slopes(q.shape[2], _not_negative("max_bias", max_bias, least=-math.inf))
    cap = _not_negative("softcap", softcap, least=0.0)
    s, t = q.shape[1], k.shape[1]
    # A single query stands at the last key; so does, for want of an offset, the last one without a mask.
    offset = mask.kv_offset() if mask.is_causal() and s > 1 else t - s
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    added = None
    causal = False
    if mask.tensor() is not None:
        added = _of_tensor(q, mask, slopes)
    elif slopes is not None:
        bias = alibi(constant(q, slopes), constant(q, distances(s, t, offset, mask.is_causal())))
        added = with_hidden(bias, visible(s, t, offset, mask.is_causal())).to_dtype(q.dtype)
    elif mask.is_causal() and offset == t - s:
        causal = s > 1
    elif (seen := visible(s, t, offset, mask.is_causal())) is not None:
        added = constant(q, seen.astype(np.uint8))
    if cap:
        return capped_attention(q, k, v, added, causal, softmax_scale, cap)
    return ops.sdpa(q, k, v, added, causal, softmax_scale)


def visible(
    queries: int, keys: int, offset: int, causal: bool, left: int | None = None, right: int | None = None
) -> Any:
    """Whether query i, which stands at key ``i + offset``, sees key j: booleans ``(queries, keys)``; ``None`` for all.

    It sees ``left`` keys before its place, all if ``None``, and ``right`` behind, none where it is ``causal`` or only
    ``left`` is given.
    """
    place, key = np.arange(queries)[:, None] + offset, np.arange(keys)
    seen = np.ones((queries, keys), np.bool_)
    if left is not None:
        seen &= key >= place - left
    if causal or (left is not None and right is None):
        seen &= key <= place
    elif right is not None:
        seen &= key <= place + right
    return None if seen.all() else seen


def distances(queries: int, keys: int, offset: int, causal: bool) -> Numbers:
    """How far key j is from query i's place ``i + offset``, ``(queries, keys)``; 0 behind it where it is ``causal``."""
    ahead = (np.arange(queries)[:, None] + offset - np.arange(keys)).astype(np.float64)
    return np.maximum(ahead, 0) if causal else np.abs(ahead)


def alibi(slopes: T, distance: T) -> T:
    """``-slope · distance``: slopes ``(h,)``, distances ``(s, t)`` to ``(h, s, t)``."""
    result: T = -(slopes.reshape((-1, 1, 1)) * distance)
    return result


def with_hidden(bias: T, seen: Numbers | None) -> T:
    """The bias with -inf where a key is not seen."""
    if seen is None:
        return bias
    result: T = bias + constant(bias, np.where(seen, 0, -np.inf))
    return result


def constant(like: T, numbers: Numbers) -> T:
    """Numbers as a tensor of the kind of ``like``, where it is; floats as F32, or as F64 beside F64."""
    wide = mx.float64 if like.dtype is DType.F64 else mx.float32
    array = mx.array(numbers, wide if numbers.dtype.kind == "f" else None)
    result: T = like._wrap(leaf(array, like.device))
    return result


def _expect_shapes(q: TensorBase, k: TensorBase, v: TensorBase) -> None:
    for name, each in (("q", q), ("k", k), ("v", v)):
        expect_tensor("flash_attn", each, name)
        expect_rank(each.shape, 4, "flash_attn")
    takes = "q (b, s, h, d), k and v (b, t, kv, d) with h a multiple of kv"
    (b, _, heads, d), (_, t, shared, _) = q.shape, k.shape
    if k.shape[0] != b or k.shape[3] != d or not shared or heads % shared:
        raise ShapeMismatchBinaryOpError("flash_attn", q.shape, k.shape, takes)
    if tuple(v.shape[:3]) != (b, t, shared):
        raise ShapeMismatchBinaryOpError("flash_attn", k.shape, v.shape, takes)


def _slopes(heads: int, max_bias: float) -> Numbers | None:
    if max_bias <= 0 or not heads:
        return None
    power = 2 ** math.ceil(math.log2(heads))
    slopes: Numbers = 2.0 ** (-max_bias * np.arange(1, heads + 1) / power)
    return slopes


def _of_tensor(q: Any, mask: AttnMask, slopes: Numbers | None) -> Any:
    given = mask.tensor()
    assert given is not None
    if given.dtype is not q.dtype:
        raise DTypeMismatchError("flash_attn", q.dtype, given.dtype)
    added: Any = q._lift(given)
    if added.rank == 3:
        added = added.unsqueeze(1)
    return added if slopes is None else added * constant(q, slopes.reshape(-1, 1, 1)).to_dtype(q.dtype)


def _not_negative(name: str, value: float | None, least: float) -> float:
    """An optional number of at least ``least``, 0 for ``None``."""
    if value is None:
        return 0.0
    takes = "a number" if least == -math.inf else "a positive number, or 0 or None for none"
    given = number("flash_attn", name, value, takes)
    if not least <= given < math.inf:
        raise ArgumentValueError(f"flash_attn: got {given} for {name}; takes {takes}")
    return given
