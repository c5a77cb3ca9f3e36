"""What BERT and MPNet have in common: their sizes, and blocks of attention and MLP, each normed after its residual.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, ClassVar, TypeVar

import mlx.core as mx

from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import ArgumentTypeError, ArgumentValueError, ModelError, ShapeMismatchError
from ..error.expect import PATH, a, expect
from ..files import parse_json_object, read_json_object
from ..nn import ops
from ..nn.activation import Activation
from ..nn.layer_norm import layer_norm
from ..nn.linear import linear
from ..nn.module import Module
from ..nn.var_builder import VarBuilder
from ..shape import expect_rank
from ..tensor.arguments import expect_tensor
from .config import typed
from .layout import hidden_value
from .load_errors import expect_all_used, misfit_errors

C = TypeVar("C", bound="EncoderConfig")
E = TypeVar("E", bound="Encoder")


def _invalid(reason: str) -> ModelError:
    return ModelError.InvalidConfig(reason=reason)


@dataclass(kw_only=True)
class EncoderConfig:
    """The sizes and switches of an encoder, with the names of ``config.json``; the defaults are BERT base's."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value, takes = getattr(self, item.name), str(item.type)
            if value is not None or not takes.endswith("| None"):
                setattr(self, item.name, typed(value, takes, item.name))

    @classmethod
    def from_json(cls: type[C], text: str) -> C:
        """Read the text of a ``config.json``. Raises ``ModelError.InvalidConfig``; does not ``validate``."""
        expect(cls.__name__, text, a(str, "the text of a config.json"))
        return cls.from_dict(parse_json_object(text, "config", _invalid), "config")

    @classmethod
    def from_file(cls: type[C], path: str | PathLike[str]) -> C:
        """Read a ``config.json``. Raises ``ModelError.InvalidConfig``; does not ``validate``."""
        expect(cls.__name__, path, PATH)
        return cls.from_dict(read_json_object(path, _invalid), str(path))

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any], source: str) -> C:
        """Read the object of a ``config.json``, unknown keys ignored; ``source`` names it in errors."""
        expect(cls.__name__, values, a(Mapping, "the object of a config.json, a dict"))
        given: dict[str, Any] = {}
        for item in fields(cls):
            value = values.get(item.name)
            if value is not None:
                given[item.name] = typed(value, str(item.type), f"{source}: {item.name}")
        return cls(**given)

    def head_dim(self) -> int:
        """The size of a head."""
        return self.hidden_size // self.num_attention_heads

    def max_tokens(self) -> int:
        """How many tokens there are positions for."""
        return self.max_position_embeddings

    def activation(self) -> Activation:
        """The function between the MLP's two layers. Raises ``ModelError.InvalidConfig`` for an unknown one."""
        try:
            return Activation.from_name(self.hidden_act)
        except (ArgumentTypeError, ArgumentValueError) as error:
            raise _invalid(f"hidden_act: {error}") from error

    def validate(self) -> None:
        """Raise ``ModelError.InvalidConfig`` unless a network can be built from these numbers."""
        for name in (
            *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            *("max_position_embeddings", "layer_norm_eps"),
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise _invalid(f"{name} is {getattr(self, name)}; takes more than 0")
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise _invalid(f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise _invalid(f"pad_token_id is {self.pad_token_id}; takes 0 to {self.vocab_size - 1}")
        self.activation()


@dataclass(frozen=True)
class BlockNames:
    """What a kind of encoder calls the parts of a block."""

    query: str
    key: str
    value: str
    output: str
    norm: str


class EncoderLayer(Module):
    """A block: ``(b, t, hidden)`` to the same, each token seeing all that the bias does not hide."""

    def __init__(self, config: EncoderConfig, names: BlockNames, vb: VarBuilder) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self._heads, self._size = config.num_attention_heads, config.head_dim()
        self.query, self.key, self.value, self.output = (
            linear(hidden, hidden, vb.pp(name)) for name in (names.query, names.key, names.value, names.output)
        )
        self.attention_norm = layer_norm(hidden, config.layer_norm_eps, vb.pp(names.norm))
        self.up = linear(hidden, inner, vb.pp("intermediate.dense"))
        self.down = linear(inner, hidden, vb.pp("output.dense"))
        self.norm = layer_norm(hidden, config.layer_norm_eps, vb.pp("output.LayerNorm"))
        self.activation = config.activation()

    def forward(self, xs: Any, bias: Any = None) -> Any:
        """``bias``, which broadcasts to ``(b, heads, t, t)``, is added to the scores."""
        b, t, hidden = xs.dims3()
        q, k, v = (
            layer(xs).reshape((b, t, self._heads, self._size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = ops.sdpa(q, k, v, bias, False, 1.0 / math.sqrt(self._size))
        xs = self.attention_norm(self.output(seen.transpose(1, 2).reshape((b, t, hidden))).add(xs))
        return self.norm(self.down(self.activation(self.up(xs))).add(xs))


class Encoder(Module, ABC):
    """A stack of blocks over embeddings, which each kind makes in its own way. Weights as transformers names them."""

    names: ClassVar[BlockNames]
    prefix: ClassVar[str]
    """What stands before the names where a head is stored beside the encoder."""

    def __init__(self, config: EncoderConfig, vb: VarBuilder) -> None:
        expect(type(self).__name__, vb, a(VarBuilder), "vb")
        config.validate()
        self.config, self.device, self.dtype = config, vb.device(), vb.dtype()
        blocks = vb.pp("encoder.layer")
        self.layers = [EncoderLayer(config, self.names, blocks.pp(i)) for i in range(config.num_hidden_layers)]

    @abstractmethod
    def embed(self, ids: Any, token_type_ids: Any = None) -> Any:
        """The blocks' input ``(b, t, hidden)``."""

    def position_bias(self, ids: Any) -> Any:
        """What the distance of two tokens adds to their score, ``(1, heads, t, t)``, or ``None``."""
        return None

    def forward(self, xs: Any, token_type_ids: Any = None, attention_mask: Any = None) -> Any:
        """The hidden states ``(b, t, hidden)`` of ids ``(b, t)``.

        ``attention_mask`` ``(b, t)`` is 1 for tokens and 0 for padding on their right, which no token sees.
        Raises ``ShapeMismatchError`` for more tokens than there are positions.
        """
        expect_tensor(type(self).__name__, xs, "ids")
        expect_rank(xs.shape, 2, f"{type(self).__name__} ids")
        most = self.config.max_tokens()
        if xs.dim(1) > most:
            raise ShapeMismatchError(f"encoder: got {xs.dim(1)} tokens; takes at most {most}")
        if attention_mask is not None:
            expect_tensor(type(self).__name__, attention_mask, "attention_mask")
            if attention_mask.shape != xs.shape:
                got = f"got attention_mask {tuple(attention_mask.shape)} for ids {tuple(xs.shape)}"
                raise ShapeMismatchError(f"{type(self).__name__}: {got}; takes the same shape, (b, t)")
        hidden, bias = self.embed(xs, token_type_ids), self.position_bias(xs)
        if attention_mask is not None:
            far = hidden_value(self.dtype)
            mask = xs._lift(attention_mask).to_dtype(self.dtype).affine(-far, far).unsqueeze(1).unsqueeze(1)
            bias = mask if bias is None else bias.broadcast_add(mask)
        for layer in self.layers:
            hidden = layer.forward(hidden, bias)
        return hidden

    @classmethod
    def from_weights(
        cls: type[E], config: EncoderConfig, weights: Mapping[str, mx.array], dtype: DTypeLike, device: DeviceLike
    ) -> E:
        """The network from stored tensors; those of heads and poolers are passed over.

        Raises ``ModelError.InvalidFormat`` for a missing or surplus tensor and ``ModelError.ShapeMismatch``.
        """
        vb = VarBuilder.from_tensors(_own(weights, cls.prefix), dtype, device)
        with misfit_errors():
            model = cls(config, vb)
        expect_all_used(vb.unused())
        return model


_HEADS = ("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.")
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def _own(weights: Mapping[str, mx.array], prefix: str) -> dict[str, mx.array]:
    """The encoder's own tensors under today's names: gamma and beta are those of the first checkpoints."""
    own = {}
    for name, array in weights.items():
        name = name.removeprefix(prefix)
        for old, new in _OLD.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if not name.startswith(_HEADS) and not name.endswith("position_ids"):
            own[name] = array
    return own
