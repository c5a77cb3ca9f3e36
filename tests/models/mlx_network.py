"""A small module with the parts that models of mlx-lm have, for what needs no mlx-lm."""

from __future__ import annotations

from typing import Any

from metal_candle import Device, Tensor
from metal_candle.models.mlx_lm import MlxLmModel
from metal_candle.models.mlx_lm.adapted import AdaptedLinear, MlxPlace
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig

import mlx.core as mx
import mlx.nn as nn
import numpy as np

VOCABULARY, HIDDEN = 48, 32


class Experts(nn.Module):
    """Stacked weights, as experts have them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.random.normal((2, HIDDEN, HIDDEN)) * 0.1

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight[0] + x @ self.weight[1]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = {"proj_in": nn.Linear(HIDDEN, 64), "proj_out": nn.Linear(64, HIDDEN, bias=False)}
        self.experts = Experts()
        self.drop = nn.Dropout(0.5)

    def __call__(self, x: mx.array) -> mx.array:
        seen = mx.cumsum(x, axis=1) / mx.arange(1, x.shape[1] + 1)[:, None]
        hidden = mx.tanh(self.mixer["proj_in"](seen))
        return x + self.drop(self.mixer["proj_out"](hidden)) + self.experts(x)


class Body(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, HIDDEN)
        self.h = [Block() for _ in range(blocks)]

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return x


class Network(nn.Module):
    """A causal model with a tied head, capped logits, and odd names."""

    def __init__(self, blocks: int = 2, mixes: bool = False) -> None:
        super().__init__()
        self.transformer = Body(blocks)
        self._mixes = mixes

    def __call__(self, ids: mx.array) -> mx.array:
        logits = mx.tanh(self.transformer.wte.as_linear(self.transformer(ids)) / 5) * 5
        return mx.cumsum(logits, axis=1) if self._mixes else logits

    @property
    def layers(self) -> list[Block]:
        return self.transformer.h


def network(seed: int = 0, **arguments: Any) -> Network:
    mx.random.seed(seed)
    built = Network(**arguments)
    mx.eval(built.parameters())
    return built


def adapter_for(model: MlxLmModel, *targets: str, dropout: float = 0.0, seed: int = 0) -> LoRAAdapter:
    Device.default().set_seed(seed)
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, dropout, targets or ("all-linear",)))
    rng = np.random.default_rng(seed)
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.from_numpy(rng.normal(0, 0.3, layer.lora_b().shape).astype(np.float32)))
    return adapter


def is_adapted(place: MlxPlace) -> bool:
    return isinstance(place.holder[place.key], AdaptedLinear)


IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint32)


def batch() -> tuple[Tensor, ...]:
    rows, targets, weights = np.array([0, 3, 6], np.int32), np.array([9, 10, 11], np.int32), np.float32([0.5, 0.2, 0.3])
    return tuple(Tensor.from_numpy(array) for array in (IDS, rows, targets, weights))
