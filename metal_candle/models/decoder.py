"""The decoder that Llama, SmolLM2, Mistral, Qwen2 and Qwen3 are: which one is up to the configuration.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; grouped heads: Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ..error import ArgumentValueError
from ..error.expect import a, expect, listed, wrong
from ..graph.scopes import scoped
from ..nn import ops
from ..nn.checkpointing import checkpoint
from ..nn.kv_cache import ConcatKvCache
from ..nn.layer_norm import rms_norm
from ..nn.loss import linear_cross_entropy
from ..nn.module import Module
from ..nn.quantized_linear import QuantizedWeight, quantized_cross_entropy
from ..nn.rotary_emb import rope
from ..nn.var_builder import VarBuilder
from ..shape import expect_rank
from ..tensor.arguments import boolean, expect_tensor
from ..tensor.eager import Tensor
from .config import ModelConfig
from .frozen import (
    FrozenEmbedding,
    FrozenLinear,
    frozen_embedding,
    frozen_linear,
    head_of,
    quantized_weight,
    tensors_of,
)
from .layout import Causal, Layout, Packed
from .packed_blocks import PackedInBlocks
from .places import Adapter, AdapterSource, expect_sizes, expect_spans
from .projection import Projection
from .rotary import RotaryEmbedding
from .target_module import TargetModule

TM = TargetModule


class Attention(Module):
    """Self-attention with grouped heads: ``(b, t, hidden)`` to the same."""

    def __init__(self, config: ModelConfig, layer: int, rotary: RotaryEmbedding, vb: VarBuilder) -> None:
        self._heads, self._kv_heads, self._size = (
            config.num_attention_heads,
            config.num_kv_heads(),
            config.head_dim(),
        )
        self._rotary, self._window = rotary, config.window(layer)
        hidden, inner, shared = config.hidden_size, self._heads * self._size, self._kv_heads * self._size

        def projection(target: TargetModule, size_in: int, size_out: int, bias: bool) -> Projection:
            return Projection(frozen_linear(size_in, size_out, bias, vb.pp(target.value)), layer, target)

        self.q_proj = projection(TM.QProj, hidden, inner, config.qkv_bias)
        self.k_proj = projection(TM.KProj, hidden, shared, config.qkv_bias)
        self.v_proj = projection(TM.VProj, hidden, shared, config.qkv_bias)
        self.o_proj = projection(TM.OProj, inner, hidden, config.output_bias)
        self._q_norm = rms_norm(self._size, config.rms_norm_eps, vb.pp("q_norm")) if config.qk_norm else None
        self._k_norm = rms_norm(self._size, config.rms_norm_eps, vb.pp("k_norm")) if config.qk_norm else None

    def projections(self) -> list[Projection]:
        """The four projections."""
        return [self.q_proj, self.k_proj, self.v_proj, self.o_proj]

    def norm_weights(self, path: str) -> dict[str, Tensor]:
        """The weights of the norms of q and k by name, where there are any."""
        norms = {"q_norm": self._q_norm, "k_norm": self._k_norm}
        return {f"{path}.{name}.weight": norm.weight() for name, norm in norms.items() if norm is not None}

    def head_dim(self) -> int:
        """The size of a head."""
        return self._size

    def forward(self, xs: Any, cache: ConcatKvCache | None = None, layout: Layout | None = None) -> Any:
        """What each position gathers from those it sees; with a cache, from earlier calls' too."""
        b, t, _ = xs.dims3()

        def heads(projected: Any, count: int) -> Any:
            return projected.reshape((b, t, count, self._size)).transpose(1, 2)

        q, k, v = heads(self.q_proj(xs), self._heads), heads(self.k_proj(xs), self._kv_heads), self.v_proj(xs)
        v = heads(v, self._kv_heads)
        if self._q_norm is not None and self._k_norm is not None:
            q, k = self._q_norm(q), self._k_norm(k)
        layout = layout or Causal.after(cache, self._rotary, xs)
        cos, sin = layout.tables()
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)
        scale = 1.0 / math.sqrt(self._size)
        if isinstance(layout, PackedInBlocks):
            out = layout.attend(q, k, v, self._window, scale)
        else:
            mask = layout.mask(self._window)
            out = ops.sdpa(q, k, v, mask, mask is None and t > 1, scale)
        return self.o_proj(out.transpose(1, 2).reshape((b, t, self._heads * self._size)))


class MLP(Module):
    """down(silu(gate(x)) · up(x)): ``(b, t, hidden)`` to the same."""

    def __init__(self, config: ModelConfig, layer: int, vb: VarBuilder) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Projection(frozen_linear(hidden, inner, bias, vb.pp("gate_proj")), layer, TM.GateProj)
        self.up_proj = Projection(frozen_linear(hidden, inner, bias, vb.pp("up_proj")), layer, TM.UpProj)
        self.down_proj = Projection(frozen_linear(inner, hidden, bias, vb.pp("down_proj")), layer, TM.DownProj)

    def projections(self) -> list[Projection]:
        """The three projections."""
        return [self.gate_proj, self.up_proj, self.down_proj]

    def forward(self, xs: Any) -> Any:
        """The gated product."""
        return self.down_proj(ops.silu_mul(self.gate_proj(xs), self.up_proj(xs)))


class DecoderLayer(Module):
    """Attention and MLP, each behind an RMS norm and around a residual."""

    def __init__(self, config: ModelConfig, layer: int, rotary: RotaryEmbedding, vb: VarBuilder) -> None:
        eps, hidden = config.rms_norm_eps, config.hidden_size
        self.self_attn = Attention(config, layer, rotary, vb.pp("self_attn"))
        self.mlp = MLP(config, layer, vb.pp("mlp"))
        self.input_layernorm = rms_norm(hidden, eps, vb.pp("input_layernorm"))
        self.post_attention_layernorm = rms_norm(hidden, eps, vb.pp("post_attention_layernorm"))

    def forward(self, xs: Any, cache: ConcatKvCache | None = None, layout: Layout | None = None) -> Any:
        """``(b, t, hidden)`` to the same."""
        xs = xs.add(self.self_attn.forward(self.input_layernorm(xs), cache, layout))
        return xs.add(self.mlp(self.post_attention_layernorm(xs)))


class Decoder(Module):
    """A causal language model. Weights have the names transformers gives them."""

    def __init__(self, config: ModelConfig, vb: VarBuilder) -> None:
        expect(type(self).__name__, config, a(ModelConfig), "config")
        expect(type(self).__name__, vb, a(VarBuilder), "vb")
        config.validate()
        self.config = config
        inner = vb.pp("model")
        self.rotary = RotaryEmbedding(config, vb.dtype(), vb.device())
        table = inner.pp("embed_tokens")
        self.embed_tokens: FrozenEmbedding = frozen_embedding(config.vocab_size, config.hidden_size, table)
        self.layers = [
            DecoderLayer(config, i, self.rotary, inner.pp("layers").pp(i)) for i in range(config.num_hidden_layers)
        ]
        self.norm = rms_norm(config.hidden_size, config.rms_norm_eps, inner.pp("norm"))
        self.lm_head: FrozenLinear = (
            head_of(self.embed_tokens)
            if config.tie_word_embeddings
            else frozen_linear(config.hidden_size, config.vocab_size, False, vb.pp("lm_head"))
        )
        self.device, self.dtype = vb.device(), vb.dtype()
        self._recomputes = False

    def gradient_checkpointing(self, on: bool = True) -> bool:
        """Turn gradient checkpointing on or off: the backward pass recomputes blocks instead of keeping activations.

        Calls with caches are computed as ever. Returns the setting before.
        """
        before, self._recomputes = self._recomputes, boolean("gradient_checkpointing", "on", on)
        return before

    def projections(self) -> list[Projection]:
        """Every projection, first layer first: where adapters act."""
        return [p for layer in self.layers for p in (*layer.self_attn.projections(), *layer.mlp.projections())]

    def apply_adapter(self, adapter: AdapterSource) -> None:
        """Let an adapter act in every projection it targets, in place of any before it.

        Raises ``ModelError.InvalidConfig``, and changes nothing, if it spans another number of blocks or a layer of it
        has other sizes than the projection.
        """
        expect_spans(adapter, len(self.layers))
        layers = [(projection, adapter.layer_at(projection.path)) for projection in self.projections()]
        for projection, layer in layers:
            expect_sizes(projection, layer)
        for projection, layer in layers:
            projection.adapter = layer

    def remove_adapter(self) -> None:
        """Leave every projection as it is without an adapter."""
        for projection in self.projections():
            projection.adapter = None

    def has_adapter(self) -> bool:
        """Whether an adapter acts in any projection."""
        return bool(self.acting())

    def acting(self) -> list[Adapter]:
        """What acts in the projections that are adapted, first block first."""
        return [projection.adapter for projection in self.projections() if projection.adapter is not None]

    def new_caches(self) -> list[ConcatKvCache]:
        """An empty key-value cache for each layer."""
        return [ConcatKvCache(2) for _ in self.layers]

    @scoped
    def hidden(self, ids: Any, caches: list[ConcatKvCache] | None = None, layout: Layout | None = None) -> Any:
        """The normed hidden states ``(b, t, hidden)`` of ids ``(b, t)``.

        ``layout`` says where the tokens stand; without one they follow those in the caches.
        """
        expect_tensor(type(self).__name__, ids, "ids")
        expect_rank(ids.shape, 2, f"{type(self).__name__} ids")
        if caches is not None:
            self._expect_caches(caches)
        layout = layout or Causal.after(caches[0] if caches else None, self.rotary, ids)
        xs = self.embed_tokens(ids)
        if self._recomputes and caches is None:
            for i in range(len(self.layers)):
                layout.mask(self.config.window(i))  # made once, outside of what is recomputed
            for layer in self.layers:
                xs = checkpoint(partial(layer.forward, layout=layout))(xs)
            return self.norm(xs)
        for i, layer in enumerate(self.layers):
            xs = layer.forward(xs, None if caches is None else caches[i], layout)
        return self.norm(xs)

    def _expect_caches(self, caches: list[ConcatKvCache]) -> None:
        """Raise ``ArgumentTypeError`` or ``ArgumentValueError`` for what is no list of a cache for each block."""
        op, takes = type(self).__name__, "a list of caches, one for each block, as new_caches() makes it"
        found = listed(op, caches, takes, "caches")
        for cache in found:
            if not hasattr(cache, "current_seq_len"):
                raise wrong(op, cache, takes, "a cache")
        if len(found) != len(self.layers):
            raise ArgumentValueError(f"{op}: got {len(found)} caches for {len(self.layers)} blocks; takes {takes}")

    def forward(self, xs: Any, caches: list[ConcatKvCache] | None = None, layout: Layout | None = None) -> Any:
        """The logits ``(b, t, vocabulary)`` of ids ``(b, t)``, each position seeing those before it."""
        return self.lm_head(self.hidden(xs, caches, layout))

    def row_losses(self, ids: Any, rows: Any, targets: Any, layout: Layout | None = None) -> Any:
        """The cross entropy at some positions of ids ``(b, t)``: ``rows`` and ``targets`` ``(n,)`` to F32 ``(n,)``.

        ``rows`` counts through ``b · t``. Only these positions meet the vocabulary head.
        """
        hidden = self.hidden(ids, None, layout)
        picked = hidden.reshape((-1, hidden.shape[-1])).index_select(rows, 0)
        head = quantized_weight(self.lm_head)
        if head is not None:
            return quantized_cross_entropy(picked, head, targets)
        return linear_cross_entropy(picked, self.head_weight(), targets, reduction="none")

    def packed(self, segments: Any, positions: Any) -> Layout:
        """The layout of rows packed into sequences: the number of each token's row and its place there, ``(b, t)``.

        Given by blocks, ``(b, n, t / n)`` with n above 1, no row may be longer than one, and attention goes by blocks.
        """
        for name, tensor in (("segments", segments), ("positions", positions)):
            expect_tensor("packed", tensor, name)
        kind = Packed if segments.rank == 2 else PackedInBlocks
        return kind(self.rotary, segments, positions)

    def head_weight(self) -> Tensor:
        """The vocabulary head's weight, ``(vocabulary, hidden)``; with tied embeddings their table.

        Of a quantised head a copy that is unpacked to F32.
        """
        head = quantized_weight(self.lm_head)
        return tensors_of("", self.lm_head)[".weight"] if head is None else head.dequantize()

    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self.config.vocab_size

    def num_layers(self) -> int:
        """How many blocks there are."""
        return len(self.layers)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor by its Hugging Face name; a tied head is not listed twice.

        A quantised weight is three, under the names that MLX gives them: ``weight`` (codes), ``scales``, ``biases``.
        """
        named: dict[str, Tensor] = {}
        for path, frozen in self._frozen().items():
            named.update(tensors_of(path, frozen))
        for i, layer in enumerate(self.layers):
            path = f"model.layers.{i}"
            named[f"{path}.input_layernorm.weight"] = layer.input_layernorm.weight()
            named[f"{path}.post_attention_layernorm.weight"] = layer.post_attention_layernorm.weight()
            named.update(layer.self_attn.norm_weights(f"{path}.self_attn"))
        named["model.norm.weight"] = self.norm.weight()
        return named

    def quantized_weights(self) -> dict[str, QuantizedWeight]:
        """Every weight that is quantised, by its Hugging Face name."""
        found = {f"{path}.weight": quantized_weight(frozen) for path, frozen in self._frozen().items()}
        return {name: weight for name, weight in found.items() if weight is not None}

    def _frozen(self) -> dict[str, FrozenLinear | FrozenEmbedding]:
        """Tables and linear maps by path; a tied head is not listed twice."""
        layers: dict[str, FrozenLinear | FrozenEmbedding] = {"model.embed_tokens": self.embed_tokens}
        layers.update({projection.path: projection.linear for projection in self.projections()})
        return layers if self.config.tie_word_embeddings else {**layers, "lm_head": self.lm_head}

    def num_parameters(self) -> int:
        """How many numbers the model has; of a quantised weight those that its codes stand for."""
        quantized = self.quantized_weights()
        parts = {part for name, weight in quantized.items() for part in weight.tensors(name)}
        plain = sum(tensor.elem_count() for name, tensor in self.weights().items() if name not in parts)
        return plain + sum(weight.shape.elem_count() for weight in quantized.values())
