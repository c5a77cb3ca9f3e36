"""The parts of a decoder, each by its sizes. metal-candle: ``metal_candle::models::transformer``.

They are those of ``decoder``, where a configuration says the sizes; queries, keys and values have biases, as in Qwen2.
"""

from __future__ import annotations

from typing import Any

from ..constructors import New
from ..device import Device, DeviceLike
from ..dtype import DType
from ..error import ArgumentTypeError, ArgumentValueError, ShapeMismatchError
from ..error.expect import a, expect, integer
from ..error.text import described
from ..nn.rotary_emb import rope_thd
from ..nn.var_builder import VarBuilder
from ..tensor.arguments import expect_tensor
from ..tensor.base import TensorBase
from . import decoder, rotary
from .config import ModelConfig
from .layout import Causal, Layout, Tables


class RotaryEmbedding(rotary.RotaryEmbedding, New):
    """Cosines and sines of positions up to ``max_seq_len``, which turn a head's halves against each other.

    The angles are ``position · theta^(-2i / head_dim)``; Su et al. 2021, https://arxiv.org/abs/2104.09864. Raises
    ``ModelError.InvalidConfig`` for an odd ``head_dim``.
    """

    def __init__(
        self, head_dim: int, max_seq_len: int = 2048, theta: float = 10000.0, device: DeviceLike = None
    ) -> None:
        config = _config(head_dim, 1, 1, 1, max_seq_len, theta)
        super().__init__(config, DType.F32, Device.of(device))
        self._head_dim, self._most = head_dim, max_seq_len

    def apply_rotary_emb(self, x: Any, seq_len: int, offset: int = 0) -> Any:
        """``x`` ``(b, t, heads, head_dim)`` turned, t being ``seq_len``, the first of its positions ``offset``.

        In its dtype. Raises ``ShapeMismatchError`` for other sizes, and ``ArgumentValueError`` for positions beyond
        ``max_seq_len``.
        """
        expect_tensor("apply_rotary_emb", x)
        if len(x.shape) != 4 or x.shape[1] != seq_len or x.shape[3] != self._head_dim:
            takes = f"(b, {seq_len}, heads, {self._head_dim})"
            raise ShapeMismatchError(f"apply_rotary_emb: got {tuple(x.shape)}; takes {takes}")
        if not 0 <= integer("apply_rotary_emb", "offset", offset) <= self._most - seq_len:
            raise ArgumentValueError(
                f"apply_rotary_emb: got positions {offset} to {offset + seq_len - 1}; takes 0 to {self._most - 1}"
            )
        cos, sin = (table.to_dtype(x.dtype) for table in self.tables(offset, seq_len))
        return rope_thd(x, cos, sin)


class Attention(decoder.Attention):
    """Causal self-attention with grouped heads, ``(b, t, hidden)`` to the same.

    Weights ``q_proj``, ``k_proj``, ``v_proj`` with biases, ``o_proj`` without. Raises ``ModelError.InvalidConfig`` for
    sizes that do not divide each other.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, num_kv_heads: int, max_seq_len: int, rope_theta: float, vb: VarBuilder
    ) -> None:
        expect("Attention", vb, a(VarBuilder), "vb")
        config = _config(hidden_size, 1, num_heads, num_kv_heads, max_seq_len, rope_theta)
        super().__init__(config, 0, rotary.RotaryEmbedding(config, vb.dtype(), vb.device()), vb)

    def forward(self, xs: Any, mask: Any = None) -> Any:  # type: ignore[override]
        """What each position gathers from itself and those before it, or from those that an additive mask leaves."""
        expect_tensor("Attention", xs)
        return super().forward(xs, None, layout_of(self._rotary, xs, mask))


class MLP(decoder.MLP):
    """``down(silu(gate(x)) · up(x))``, ``(…, hidden)`` to the same, without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int, vb: VarBuilder) -> None:
        expect("MLP", vb, a(VarBuilder), "vb")
        super().__init__(_config(hidden_size, intermediate_size, 1, 1, 1, 10000.0, False), 0, vb)


class Masked:
    """Tokens from position 0 on, with a given additive mask."""

    def __init__(self, rotary: rotary.RotaryEmbedding, xs: Any, mask: Any) -> None:
        self._causal, self._mask = Causal(rotary, xs, 0), mask

    def tables(self) -> Tables:
        """Those of the first positions."""
        return self._causal.tables()

    def mask(self, window: int | None) -> Any:
        """The given one, with what a sliding window hides."""
        window_mask = self._causal.mask(window)
        return self._mask if window_mask is None else self._mask.broadcast_add(window_mask)


def layout_of(rotary: rotary.RotaryEmbedding, xs: Any, mask: Any) -> Layout:
    """The layout of ``xs``, ``(b, t)`` or ``(b, t, hidden)``: causal unless there is a mask.

    Raises ``ArgumentTypeError`` for a mask that is no float tensor, and ``ShapeMismatchError`` for one that does not
    broadcast to ``(b, heads, t, t)``, or that does so by accident: ``(b, t)``, as tokenizers give it.
    """
    if mask is None:
        return Causal(rotary, xs, 0)
    takes = "takes an additive mask of floats, 0 where a position sees another and -inf where not"
    if not isinstance(mask, TensorBase) or not mask.dtype.is_float():
        got = f"a mask of {mask.dtype}" if isinstance(mask, TensorBase) else described(mask)
        raise ArgumentTypeError(f"attention_mask: got {got}; {takes}")
    b, t = xs.shape[:2]
    wanted = (b, None, t, t)[4 - len(mask.shape) :] if len(mask.shape) <= 4 else ()
    fits = len(wanted) in (2, 3, 4) and all(want is None or size in (1, want) for size, want in zip(mask.shape, wanted))
    if not fits:
        shapes = f"(t, t), (heads, t, t) or (b, heads or 1, t, t), with b {b} and t {t}"
        raise ShapeMismatchError(f"attention_mask: got {tuple(mask.shape)}; takes {shapes}")
    return Masked(rotary, xs, xs._lift(mask).to_dtype(rotary.dtype))


def _config(
    hidden: int, inner: int, heads: int, kv_heads: int, length: int, theta: float, with_heads: bool = True
) -> ModelConfig:
    config = ModelConfig(
        model_type="qwen2",
        vocab_size=1,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rope_theta=theta,
    )
    if with_heads:
        config.validate()
    return config
