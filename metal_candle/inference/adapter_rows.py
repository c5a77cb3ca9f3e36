"""Adapters that differ from row to row of a batch: grouped LoRA in every projection.

Chen et al. 2023 (Punica), https://arxiv.org/abs/2310.18547; Sheng et al. 2023 (S-LoRA),
https://arxiv.org/abs/2311.03285.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..dtype import DType
from ..error import InferenceError, ModelError
from ..graph.node import GraphNode, placeholder
from ..graph.operation import Meta
from ..models.decoder import Decoder
from ..models.places import AdapterSource
from ..models.projection import Projection
from ..shape import Shape
from ..tensor.eager import Tensor
from ..tensor.lazy import LazyTensor
from ..training.adapter import LoRAAdapter
from ..training.lora import LoRALayer

NONE = -1


class AdapterRows:
    """Several adapters at once: each row of a batch goes through the one that it names, or through none.

    Ranks, scales and targets may differ. The factors of all adapters of a projection lie below each other; which
    rows take which is a tensor, so that a recorded step serves any assignment. An adapter's dropout does not act.
    Raises ``ModelError.InvalidConfig`` for an adapter of another number of blocks.
    """

    def __init__(self, model: Decoder, adapters: Mapping[str, LoRAAdapter], names: Sequence[str | None]) -> None:
        """``names`` has the name of an adapter for each row, or ``None``."""
        used = list(dict.fromkeys(name for name in names if name is not None))
        for name in used:
            if adapters[name].num_layers() != model.num_layers():
                raise ModelError.InvalidConfig(
                    reason=f"adapter {name!r} spans {adapters[name].num_layers()} layers, the model has "
                    f"{model.num_layers()}"
                )
        self._num_layers, self._device, self._names = model.num_layers(), model.device, list(names)
        self._ids: dict[tuple[str, ...], Any] = {}
        self._layers: dict[str, RowsOfLoRA] = {}
        for place in model.projections():
            found = {name: adapters[name].layer_at(place.path) for name in used}
            own = {name: layer for name, layer in found.items() if layer is not None}
            if own:
                members = tuple(own)
                self._ids.setdefault(members, None)
                self._layers[place.path] = RowsOfLoRA(self, members, list(own.values()), model.dtype)
        self.select(range(len(names)))

    def num_layers(self) -> int:
        """How many blocks the adapters span."""
        return self._num_layers

    def layer_at(self, path: str) -> RowsOfLoRA | None:
        """What acts at a module path, or ``None``."""
        return self._layers.get(path)

    def ids(self, members: tuple[str, ...]) -> Any:
        """The place of each row's adapter among some, -1 for none of them: I32 ``(rows,)``."""
        return self._ids[members]

    def select(self, rows: Sequence[int]) -> list[Any]:
        """Let what is computed next be of these rows, by their places in ``names``; gives the ids, by members."""
        found = []
        for members in self._ids:
            names = [self._names[row] for row in rows]
            values = np.array([members.index(name) if name in members else NONE for name in names], np.int32)
            self._ids[members] = Tensor.new(values, self._device, DType.I32)
            found.append(values)
        return found

    def place(self, rows: int) -> list[GraphNode]:
        """Let what is recorded next depend on ids that are given later: a placeholder for each."""
        for members in self._ids:
            self._ids[members] = LazyTensor(placeholder(Meta(Shape((rows,)), DType.I32), self._device))
        return [ids._node for ids in self._ids.values()]


class RowsOfLoRA:
    """What several adapters add in one projection, to each row its own."""

    def __init__(self, rows: AdapterRows, members: tuple[str, ...], layers: Sequence[Any], dtype: DType) -> None:
        for name, layer in zip(members, layers):
            if not isinstance(layer, LoRALayer):
                raise InferenceError.InvalidConfig(
                    reason=f"adapter {name!r} has a {type(layer).__name__}; rows of a batch take LoRALayers"
                )
        self._rows, self._members = rows, members
        self._ranks = tuple(int(layer.lora_a().dim(1)) for layer in layers)
        self._scales = tuple(float(layer.config().scaling()) for layer in layers)
        factors_a = [layer.lora_a().detach().t() for layer in layers]
        self._a = Tensor.cat(factors_a, 0).to_dtype(dtype).contiguous()
        self._b = Tensor.cat([layer.lora_b().detach() for layer in layers], 0).to_dtype(dtype)

    def apply(self, base: Any, x: Any) -> Any:
        """``base`` ``(b, …, out)`` plus the delta of ``x`` ``(b, …, in)`` under each row's adapter."""
        ids = base._lift(self._rows.ids(self._members))
        return base.grouped_lora(x, ids, base._lift(self._a), base._lift(self._b), self._ranks, self._scales)


def with_adapters(model: Decoder, source: AdapterSource) -> Decoder:
    """A model of the same weights in which other adapters act; ``model`` itself is left as it is.

    So other threads that use the model meanwhile see nothing of it.
    """
    other = copy.copy(model)
    other.layers = [_copied(layer, "self_attn", "mlp") for layer in model.layers]
    for layer in other.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, projection in vars(part).items():
                if isinstance(projection, Projection):
                    setattr(part, name, copy.copy(projection))
    other.apply_adapter(source)
    return other


def _copied(module: Any, *parts: str) -> Any:
    made = copy.copy(module)
    for name in parts:
        setattr(made, name, copy.copy(getattr(module, name)))
    return made
