"""The linear maps of an mlx-lm model's blocks, and the low-rank updates that act in them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

from ...device import Device
from ...error import ModelError
from ...graph.operations.random import Dropout
from ...kernels.fused_lora import add_lora
from ...nn.quantized_linear import QuantizedWeight
from ...tensor.eager import Tensor


class Update(NamedTuple):
    """A low-rank update in force: its factors, its scale, its dropout and the key that draws it."""

    a: mx.array
    b: mx.array
    scale: float
    dropout: float = 0.0
    key: mx.array | None = None

    def added(self, base: mx.array, x: mx.array) -> mx.array:
        """``base`` plus the update of ``x``, computed in the dtype of ``x``, as ``LoRALayer.apply`` does."""
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        if self.dropout and self.key is not None:
            hidden = Dropout(self.dropout).lower(x @ a, self.key) * self.scale
            return base + (hidden @ b).astype(base.dtype)
        if base.dtype != x.dtype:
            return base + (self.scale * (x @ a) @ b).astype(base.dtype)
        return cast("mx.array", add_lora(base, x, a, b, self.scale))


class Seats:
    """Which layer of the adapter acts at which path, and the factors bound to it while a record is computed."""

    def __init__(self) -> None:
        self.layers: dict[str, Any] = {}
        # A thread's own: another may compute the same model with other factors.
        self._bound = threading.local()

    @contextmanager
    def bound(self, updates: Mapping[str, Update]) -> Iterator[None]:
        """Within it these updates act, and no others."""
        before = getattr(self._bound, "updates", None)
        self._bound.updates = updates
        try:
            yield
        finally:
            self._bound.updates = before

    def update(self, path: str) -> Update | None:
        """The update at a path: the one that is bound, else what the adapter's variables hold now."""
        bound: Mapping[str, Update] | None = getattr(self._bound, "updates", None)
        if bound is not None:
            return bound.get(path)
        layer = self.layers.get(path)
        return (
            None
            if layer is None
            else Update(layer.lora_a().mlx(), layer.lora_b().mlx(), float(layer.config().scaling()))
        )


ANOTHER = "an adapter acts here that another MlxLmModel of the same module has applied; takes remove_adapter() of that"


class AdaptedLinear(Module):
    """A frozen linear map with the update that acts in it; it takes the map's place in the model."""

    def __init__(self, linear: Module, path: str, seats: Seats) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear, self._path, self._seats = linear, path, seats

    def is_of(self, seats: Seats) -> bool:
        """Whether its update is one of these."""
        return self._seats is seats

    def __call__(self, x: mx.array) -> mx.array:
        """``(…, in)`` to ``(…, out)``."""
        base: mx.array = self.linear(x)
        update = self._seats.update(self._path)
        return base if update is None else update.added(base, x)


@dataclass(frozen=True, eq=False)
class MlxPlace:
    """A linear map inside a block, by its path in the model; its holder is the module or list it stands in."""

    path: str
    layer: int
    linear: Any
    holder: Any
    key: Any
    device: Device

    @property
    def in_features(self) -> int:
        """The size it takes."""
        width = int(self.linear.weight.shape[1])
        return width * 32 // int(self.linear.bits) if is_quantized(self.linear) else width

    @property
    def out_features(self) -> int:
        """The size it gives."""
        return int(self.linear.weight.shape[0])

    def dense_weight(self) -> Tensor:
        """Its frozen weight ``(out, in)`` in F32, widened where it is quantised."""
        if (quantized := self.quantized_weight()) is not None:
            return quantized.dequantize()
        return Tensor.from_mlx(self.linear.weight.astype(mx.float32), self.device)

    def quantized_weight(self) -> QuantizedWeight | None:
        """Its weight where that is packed, ``None`` where it is not."""
        linear = self.linear
        if not is_quantized(linear):
            return None
        codes, scales = (Tensor.from_mlx(array, self.device) for array in (linear.weight, linear.scales))
        biases = Tensor.from_mlx(linear.biases, self.device) if linear.get("biases") is not None else None
        return QuantizedWeight(codes, scales, biases, linear.bits, linear.group_size, linear.mode)

    def put(self, module: Any) -> None:
        """Let ``module`` stand where the map stands."""
        self.holder[self.key] = module

    def is_adapted(self, seats: Seats) -> bool:
        """Whether an ``AdaptedLinear`` of these seats stands here."""
        here = self.holder[self.key]
        return isinstance(here, AdaptedLinear) and here.is_of(seats)

    def expect_own(self, seats: Seats) -> None:
        """Raise ``ModelError.InvalidConfig`` where an ``AdaptedLinear`` of other seats stands, which would act, too."""
        if isinstance(self.holder[self.key], AdaptedLinear) and not self.is_adapted(seats):
            raise ModelError.InvalidConfig(reason=f"{self.path}: {ANOTHER}")


def is_quantized(module: Any) -> bool:
    """Whether it is a linear map of packed weights."""
    return isinstance(module, QuantizedLinear)


def block_paths(model: Any) -> list[str]:
    """The paths of a model's blocks, first block first. Raises ``ModelError.InvalidConfig`` where it has none."""
    named = {id(module): path for path, module in reversed(model.named_modules())}
    paths = [named.get(id(block), "") for block in getattr(model, "layers", None) or ()]
    if not paths or not all(paths):
        raise ModelError.InvalidConfig(
            reason=f"{type(model).__name__}: got a module without blocks; takes a language model of mlx-lm, which "
            "has them in its attribute layers"
        )
    return paths


def find_places(model: Any, blocks: Sequence[str], device: Device) -> list[MlxPlace]:
    """Every linear map inside a block that an adapter may act in, first block first.

    Raises ``ModelError.InvalidConfig`` where one acts already.
    """
    found = []
    for path, module in _inside(model, blocks):
        if isinstance(module, AdaptedLinear):
            raise ModelError.InvalidConfig(reason=f"{path}: {ANOTHER}")
        if type(module) in (Linear, QuantizedLinear):
            layer = _block_of(path, blocks)
            holder, key = _holder(model, path)
            found.append(MlxPlace(path, layer, module, holder, key, device))
    return sorted(found, key=lambda place: place.layer)


def other_maps(model: Any, blocks: Sequence[str]) -> dict[str, str]:
    """The paths of what maps vectors and cannot be adapted, each with the name of its class: experts, embeddings."""
    found = {}
    for path, module in [*_inside(model, blocks), *_outside(model, blocks)]:
        weight = module.get("weight")
        plain = type(module) in (Linear, QuantizedLinear)
        if isinstance(weight, mx.array) and weight.ndim >= 2 and not (plain and _block_of(path, blocks) >= 0):
            found[path] = type(module).__name__
    return found


def _inside(model: Any, blocks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in reversed(model.named_modules()) if _block_of(path, blocks) >= 0)


def _outside(model: Any, blocks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in reversed(model.named_modules()) if _block_of(path, blocks) < 0)


def _block_of(path: str, blocks: Sequence[str]) -> int:
    return next((i for i, block in enumerate(blocks) if path.startswith(f"{block}.")), -1)


def _holder(model: Any, path: str) -> tuple[Any, Any]:
    """The module, dict or list that holds what is at ``path``, and its key there."""
    *above, last = path.split(".")
    holder = model
    for name in above:
        holder = holder[_key(holder, name)]
    return holder, _key(holder, last)


def _key(holder: Any, name: str) -> Any:
    return int(name) if isinstance(holder, (list, tuple)) else name
