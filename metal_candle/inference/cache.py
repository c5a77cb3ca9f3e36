"""Keys and values of all layers, for models written by hand. metal-candle: ``metal_candle::inference::KVCache``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..constructors import Default, New
from ..device import Device, DeviceLike
from ..error import (
    ArgumentValueError,
    DeviceMismatchBinaryOpError,
    InferenceError,
    InvalidIndexError,
    ShapeMismatchError,
)
from ..error.expect import expect_config
from ..nn.kv_cache import KvCache
from ..nn.kv_cache.pair import expect_pair
from ..shape import expect_rank
from ..tensor.arguments import expect_tensor

BLOCK = 256
"""Entries a layer's block grows by."""


@dataclass(frozen=True)
class KVCacheConfig(Default):
    """The sizes of a ``KVCache``; ``num_heads`` counts the heads of keys and values."""

    max_seq_len: int = 2048
    num_layers: int = 24
    num_heads: int = 14
    head_dim: int = 64
    batch_size: int = 1

    def validate(self) -> None:
        """Raise ``InferenceError.InvalidConfig`` for a size below 1."""
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not int or value < 1:
                raise InferenceError.InvalidConfig(reason=f"{item.name} is {value!r}; takes an integer from 1")


class KVCache(New):
    """The keys and values of each layer, ``(batch, heads, t, head_dim)``, appended along dim 2.

    A layer's block grows by 256 entries up to ``max_seq_len``; an eager append writes into it, so that what it costs
    does not depend on what is there. Layers may come in any order. Raises as ``KVCacheConfig.validate``.
    """

    def __init__(self, config: KVCacheConfig | None = None, device: DeviceLike = None) -> None:
        self._config = KVCacheConfig() if config is None else expect_config("KVCache", config, KVCacheConfig)
        self._config.validate()
        self._device = Device.of(device)
        self._layers: dict[int, KvCache] = {}

    def __repr__(self) -> str:
        layers = f"{self.num_cached_layers()} of {self._config.num_layers} layers"
        return f"KVCache(position={self.position()} of {self.max_seq_len()}, {layers})"

    def config(self) -> KVCacheConfig:
        """The sizes."""
        return self._config

    def update(self, layer_idx: int, key: Any, value: Any) -> tuple[Any, Any]:
        """All keys and values of a layer, up to and including these, ``(batch, heads, t, head_dim)``.

        Raises ``InferenceError.CacheFull`` where they are more than ``max_seq_len``, ``InvalidIndexError`` for a layer
        that is none, and ``ShapeMismatchError``, ``DTypeMismatchError`` or ``DeviceMismatchBinaryOpError`` for tensors
        that do not fit the configuration or those before; nothing has changed then.
        """
        self._expect_layer(layer_idx)
        for name, tensor in (("key", key), ("value", value)):
            self._expect_fit(name, tensor)
        layer = self._layers.get(layer_idx) or KvCache(2, min(BLOCK, self._config.max_seq_len))
        count = expect_pair(layer.k_cache()._block, layer.v_cache()._block, key, value)
        position = layer.current_seq_len()
        if position + count > self._config.max_seq_len:
            raise InferenceError.CacheFull(position=position + count, max_len=self._config.max_seq_len)
        both = layer.append(key, value)
        self._layers[layer_idx] = layer
        return both

    def get(self, layer_idx: int) -> tuple[Any, Any] | None:
        """The keys and values of a layer, ``None`` where nothing was cached. Raises ``InvalidIndexError``."""
        self._expect_layer(layer_idx)
        layer = self._layers.get(layer_idx)
        return None if layer is None else (layer.k(), layer.v())

    def position(self) -> int:
        """How many tokens are in: in a step that is not through all layers, those of the foremost."""
        return max((layer.current_seq_len() for layer in self._layers.values()), default=0)

    def length(self, layer_idx: int) -> int:
        """How many tokens a layer holds. Raises ``InvalidIndexError``."""
        self._expect_layer(layer_idx)
        return self._layers[layer_idx].current_seq_len() if layer_idx in self._layers else 0

    def trim(self, position: int) -> None:
        """Forget every token from ``position`` on, so that another continuation can be tried.

        Tensors that were given away keep their values. Raises ``ArgumentValueError`` for a position that is not there.
        """
        if type(position) is not int or not 0 <= position <= self.position():
            raise ArgumentValueError(f"trim: got position {position!r}; takes 0 to {self.position()}")
        for layer in self._layers.values():
            layer.truncate(min(position, layer.current_seq_len()))

    def is_empty(self) -> bool:
        """Whether no token is in."""
        return self.position() == 0

    def max_seq_len(self) -> int:
        """How many tokens there is room for."""
        return self._config.max_seq_len

    def num_cached_layers(self) -> int:
        """How many layers hold something."""
        return sum(layer.current_seq_len() > 0 for layer in self._layers.values())

    def clear(self) -> None:
        """Forget everything."""
        self._layers.clear()

    def _expect_layer(self, layer_idx: int) -> None:
        if type(layer_idx) is not int or not 0 <= layer_idx < self._config.num_layers:
            raise InvalidIndexError("KVCache layer", layer_idx, self._config.num_layers)

    def _expect_fit(self, name: str, tensor: Any) -> None:
        expect_tensor("KVCache update", tensor, name)
        expect_rank(tensor.shape, 4, f"KVCache update {name}")
        config = self._config
        wanted = (config.batch_size, config.num_heads, tensor.shape[2], config.head_dim)
        if tuple(tensor.shape) != wanted:
            raise ShapeMismatchError(
                f"KVCache update: got {name} {list(tensor.shape)}; takes batch_size {config.batch_size}, num_heads "
                f"{config.num_heads}, any number of tokens, head_dim {config.head_dim}"
            )
        if tensor.device != self._device:
            raise DeviceMismatchBinaryOpError("KVCache update", self._device, tensor.device)
