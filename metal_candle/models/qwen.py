"""Qwen2: ``Decoder`` with metal-candle's interface. metal-candle: ``metal_candle::models::{Qwen, qwen}``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..error import ArgumentValueError, InvalidIndexError
from ..error.expect import a, expect, wrong
from ..nn.kv_cache import ConcatKvCache
from ..nn.var_builder import VarBuilder
from ..tensor.arguments import expect_tensor
from .config import ModelConfig
from .decoder import Decoder, DecoderLayer
from .layout import Layout
from .places import AdapterSource
from .rotary import RotaryEmbedding
from .transformer import layout_of

FAMILY = ("qwen2", "qwen3")


class QwenDecoderLayer(DecoderLayer):
    """Attention and MLP, each behind an RMS norm and around a residual: one block of ``Qwen``, by its index."""

    def __init__(self, config: ModelConfig, layer_idx: int, vb: VarBuilder) -> None:
        config = as_qwen(config)
        expect("QwenDecoderLayer", vb, a(VarBuilder), "vb")
        config.validate()
        if type(layer_idx) is not int or not 0 <= layer_idx < config.num_hidden_layers:
            raise InvalidIndexError("QwenDecoderLayer", layer_idx, config.num_hidden_layers)
        self._rotary = RotaryEmbedding(config, vb.dtype(), vb.device())
        super().__init__(config, layer_idx, self._rotary, vb)

    def forward(  # type: ignore[override]
        self, xs: Any, mask: Any = None, adapter: AdapterSource | None = None
    ) -> Any:
        """``(b, t, hidden)`` to the same: causal unless an additive mask is given.

        ``adapter`` acts in this call, in place of one that was applied, in each projection of the block it has a layer
        for.
        """
        expect_tensor("QwenDecoderLayer", xs)
        if adapter is not None and not hasattr(adapter, "layer_at"):
            raise wrong("QwenDecoderLayer", adapter, "an adapter: a LoRAAdapter")
        with self._adapted(adapter):
            return super().forward(xs, None, layout_of(self._rotary, xs, mask))

    @contextmanager
    def _adapted(self, adapter: AdapterSource | None) -> Iterator[None]:
        places = [] if adapter is None else [*self.self_attn.projections(), *self.mlp.projections()]
        before = [place.adapter for place in places]
        try:
            for place in places:
                place.adapter = None if adapter is None else adapter.layer_at(place.path)
            yield
        finally:
            for place, earlier in zip(places, before):
                place.adapter = earlier


class Qwen(Decoder):
    """A causal language model with biases on queries, keys and values, and a head of its own unless it is tied.

    A configuration that says another architecture than Qwen2's or Qwen3's is read as Qwen2's. Adapters, caches,
    generation and saving are ``Decoder``'s. Raises ``ModelError.InvalidConfig``, and ``CannotFindTensorError``, naming
    it, for a weight that ``vb`` lacks.
    """

    def __init__(self, config: ModelConfig, vb: VarBuilder) -> None:
        super().__init__(as_qwen(config), vb)

    def forward(  # type: ignore[override]
        self,
        input_ids: Any,
        attention_mask: Any = None,
        caches: list[ConcatKvCache] | None = None,
        layout: Layout | None = None,
    ) -> Any:
        """The logits ``(b, t, v)`` of ids ``(b, t)``: each position sees itself and those before it.

        An ``attention_mask`` of floats, which broadcasts to ``(b, heads, t, t)``, is added to the scores instead; it
        says all that is hidden, and comes without ``caches`` and ``layout``. Raises ``ArgumentTypeError``,
        ``ArgumentValueError``, ``ShapeMismatchError``, and ``InvalidIndexError`` for an id that is no token.
        """
        expect_tensor("Qwen", input_ids, "ids")
        if attention_mask is not None:
            if caches is not None or layout is not None:
                raise ArgumentValueError("Qwen: got attention_mask beside caches or layout; takes it alone")
            layout = layout_of(self.rotary, input_ids, attention_mask)
        return super().forward(input_ids, caches, layout)


def as_qwen(config: ModelConfig) -> ModelConfig:
    """The configuration with a Qwen's ``model_type``, and so with its biases: Qwen2's unless it says Qwen3."""
    expect("Qwen", config, a(ModelConfig), "config")
    if config.model_type in FAMILY:
        return config
    return replace(config, model_type=FAMILY[0], architectures=[])
