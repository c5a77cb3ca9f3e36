"""A language model of mlx-lm as a base for adapters, training and generation."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module as MlxModule
from mlx.utils import tree_flatten

from ...device import Device, DeviceLike
from ...dtype import DType
from ...error import ModelError
from ...error.expect import a, expect, integer, listed, wrong
from ...graph.evaluate import on_device
from ...graph.operations.mlx_function import MlxFunction, MlxLoss
from ...graph.operations.random import random_key
from ...graph.scopes import scoped
from ...nn.module import Module
from ...nn.quantized_linear import QuantizedWeight
from ...tensor.arguments import expect_tensor
from ..places import AdapterSource, expect_sizes, expect_spans
from .adapted import AdaptedLinear, MlxPlace, Seats, block_paths, find_places, is_quantized, other_maps
from .computations import Logits, Losses, Seat, WeightedLoss
from .config import MlxLmConfig
from .head import RowLogits
from .network import Network, count_parameters


class MlxLmModel(Module):
    """A language model of mlx-lm, whatever its architecture, as an ``AdaptableModel``.

    ``model`` is what ``mlx_lm.load`` gives, or a model built with mlx-lm's classes; ``config`` the object of its
    ``config.json``. Its weights are never changed. An adapter acts in the ``mlx.nn.Linear`` and ``QuantizedLinear``
    of its blocks; experts (``SwitchLinear``), embeddings and the head cannot be adapted. While an adapter is applied,
    small modules stand in the adapted places, so that mlx-lm's own functions, called with the model, have it act too.

    The model computes as its own code says: with ``train()`` of its modules where a gradient is taken, as mlx-lm
    trains, but without the dropout of the base. Raises ``ModelError.InvalidConfig`` for a module without blocks,
    and for one in which an adapter acts that another ``MlxLmModel`` has applied.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, config: Mapping[str, Any] | None = None, device: DeviceLike = None
    ) -> None:
        if not isinstance(model, MlxModule):
            raise ModelError.InvalidConfig(
                reason=f"MlxLmModel: got {type(model).__name__}; takes a model of mlx-lm, an mlx.nn.Module"
            )
        expect("MlxLmModel", config, a((Mapping, type(None)), "the object of a config.json"), "config")
        self.device = Device.default() if device is None else Device.of(device)
        self.module, self.tokenizer = model, tokenizer
        self._blocks = block_paths(model)
        self._places = find_places(model, self._blocks, self.device)
        self._others = other_maps(model, self._blocks)
        self._seats = Seats()
        self._adapter: AdapterSource | None = None
        model.eval()
        with on_device(self.device):
            self._rows = RowLogits(model, self._blocks[0])
            logits = model(mx.zeros((1, 1), mx.uint32))
        self._vocabulary, self._logits_dtype = int(logits.shape[-1]), DType.of(logits.dtype)
        self._parameters = count_parameters(model)
        self._network = Network(model, self._seats, self._rows, self._vocabulary, self._parameters, self._placed)
        self.dtype = self._compute_dtype()
        self.config = MlxLmConfig.of(model, config)

    # --- what it is ---------------------------------------------------------------------------

    def num_layers(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def projections(self) -> list[MlxPlace]:
        """Every linear map inside a block, first block first: where adapters act."""
        return list(self._places)

    def vocab_size(self) -> int:
        """How many logits a position has."""
        return self._vocabulary

    def num_parameters(self) -> int:
        """How many numbers the model has, without adapters; packed ones are counted as what they stand for."""
        return self._parameters

    def weights(self) -> dict[str, mx.array]:
        """Every array by its path in the model, as if no adapter were applied."""
        for place in self._places:
            place.expect_own(self._seats)
        adapted = {place.path for place in self._places if place.is_adapted(self._seats)}
        named: dict[str, mx.array] = {}
        parameters: Any = tree_flatten(cast("Any", self.module).parameters())
        for name, array in parameters:
            path, _, last = name.rpartition(".linear.")
            named[f"{path}.{last}" if path in adapted else name] = array
        return named

    def quantized_weights(self) -> dict[str, QuantizedWeight]:
        """The weights of adaptable maps that are quantised, by name."""
        found = {f"{place.path}.weight": place.quantized_weight() for place in self._places}
        return {name: weight for name, weight in found.items() if weight is not None}

    def facts(self) -> list[tuple[str, str]]:
        """What ``explain`` and the command line say of it: names and values."""
        names = ", ".join(dict.fromkeys(place.path.rpartition(".")[2] for place in self._places))
        body = self._rows.path
        rows = f"the trained ones, picked after {body}" if body else "all"
        return [
            ("architecture", f"{self.config.model_type or type(self.module).__name__}, of mlx-lm"),
            ("parameters", f"{self._parameters:,}"),
            ("layers", f"{self.num_layers()}, {self._blocks[0]} to {self._blocks[-1]}"),
            ("linear maps", f"{len(self._places)}: {names}"),
            ("vocabulary", f"{self._vocabulary:,}"),
            ("at the head", f"{rows}: {self._rows.reason}"),
        ]

    def explain(self) -> str:
        """The architecture, its adaptable maps, and which positions meet the vocabulary head for a loss, with why."""
        return "\n".join(f"{name:<12}  {value}" for name, value in self.facts())

    def refused_target(self, name: str) -> str | None:
        """Why a name, or the end of a path, cannot be adapted everywhere it occurs; ``None`` where it can."""
        expect("refused_target", name, a(str, "a name"))
        found = [path for path in self._others if path == name or path.endswith(f".{name}")]
        if not found:
            return None
        path = found[0]
        also = [place.path for place in self._places if place.path.endswith(f".{name}")]
        longer = ", ".join(dict.fromkeys(".".join(each.split(".")[-1 - name.count(".") - 1 :]) for each in also))
        hint = f"; {longer} can be" if also else ""
        return f"{path} is a {self._others[path]}, which cannot be adapted{hint}"

    # --- adapters -----------------------------------------------------------------------------

    def apply_adapter(self, adapter: AdapterSource) -> None:
        """Let an adapter act in every place it targets, in place of any before it; all or nothing.

        Raises ``ModelError.InvalidConfig`` for an adapter of another number of blocks, for a layer that is no low-rank
        update or has other sizes, and while another ``MlxLmModel`` of the same module has an adapter applied.
        """
        expect_spans(adapter, self.num_layers())
        layers: dict[str, Any] = {}
        for place in self._places:
            place.expect_own(self._seats)
            layer = adapter.layer_at(place.path)
            if layer is None:
                continue
            if not (hasattr(layer, "lora_a") and hasattr(layer, "lora_b") and hasattr(layer, "config")):
                raise ModelError.InvalidConfig(
                    reason=f"{place.path}: a {type(layer).__name__} cannot act in a model of mlx-lm; takes a LoRALayer"
                )
            expect_sizes(place, layer)
            layers[place.path] = layer
        for place in self._places:
            if place.path in layers and not place.is_adapted(self._seats):
                place.put(AdaptedLinear(place.linear, place.path, self._seats))
        self._seats.layers, self._adapter = layers, adapter

    def remove_adapter(self) -> None:
        """Put the model's own modules back."""
        self._seats.layers, self._adapter = {}, None
        for place in self._places:
            if place.is_adapted(self._seats):
                place.put(place.linear)

    def has_adapter(self) -> bool:
        """Whether an adapter acts."""
        return bool(self._seats.layers)

    def acting(self) -> list[Any]:
        """What acts in the places that are adapted."""
        return list(self._seats.layers.values())

    # --- records ------------------------------------------------------------------------------

    @scoped
    def forward(self, xs: Any) -> Any:
        """The logits ``(b, t, vocabulary)`` of ids ``(b, t)``: lazy for lazy ids, eager for eager ones."""
        seats, adapted = self._adapted(xs)
        return xs._record(MlxFunction(Logits(self._network, seats, self._logits_dtype)), *adapted)

    @scoped
    def row_losses(self, ids: Any, rows: Any, targets: Any) -> Any:
        """The cross entropy at some positions of ids ``(b, t)``: ``rows`` and ``targets`` ``(n,)`` to F32 ``(n,)``.

        ``rows`` counts through ``b · t``. The gradient computes the model once more; see ``weighted_loss``.
        """
        seats, adapted = self._adapted(ids)
        others = [ids._lift(rows), ids._lift(targets), *adapted]
        return ids._record(MlxFunction(Losses(self._network, seats)), *others)

    @scoped
    def weighted_loss(self, ids: Any, rows: Any, targets: Any, weights: Any) -> Any:
        """The sum of ``row_losses`` times weights ``(n,)``: a number, whose gradient comes from the same pass."""
        seats, adapted = self._adapted(ids)
        others = [ids._lift(rows), ids._lift(targets), ids._lift(weights), *adapted]
        # A key has no gradient: the factors come last, two of each seat.
        return ids._record(MlxLoss(WeightedLoss(self._network, seats), len(others) + 1 - 2 * len(seats)), *others)

    def _adapted(self, xs: Any) -> tuple[tuple[Seat, ...], list[Any]]:
        """The seats that are taken, and their inputs to a record: a key if one of them drops, then each A and B.

        A compiled function has a plan for each adapter that it meets here.
        """
        expect_tensor("MlxLmModel", xs, "ids")
        self._asked()
        seats, inputs = [], []
        for place in self._places:
            layer = self._seats.layers.get(place.path)
            if layer is not None:
                config = layer.config()
                dropout = float(config.dropout) if layer.is_training() else 0.0
                seats.append(Seat(place.path, float(config.scaling()), dropout))
                inputs += [xs._lift(layer.lora_a()), xs._lift(layer.lora_b())]
        if any(seat.dropout for seat in seats):
            inputs.insert(0, xs._wrap(random_key(self.device)))
        return tuple(seats), inputs

    # --- generation ---------------------------------------------------------------------------

    def new_caches(self) -> list[Any]:
        """mlx-lm's own caches for one sequence, of the kinds this architecture has."""
        from mlx_lm.models.cache import make_prompt_cache

        found: list[Any] = make_prompt_cache(self.module)
        return found

    def next_logits(self, ids: Sequence[int], caches: list[Any], last: bool = True) -> mx.array | None:
        """The logits ``(vocabulary,)`` after ids that follow those in the caches; without ``last`` only the caches."""
        given = [integer("next_logits", "an id", each) for each in listed("next_logits", ids, "a list of ids", "ids")]
        takes = "a list of caches, as new_caches() makes it"
        if not all(hasattr(cache, "state") for cache in listed("next_logits", caches, takes, "caches")):
            raise wrong("next_logits", caches, takes, "caches")
        logits = self.begin_logits(mx.array([given], mx.uint32), caches)
        with on_device(self.device):
            # Without being asked for, the head of an earlier piece of a prompt is never computed.
            mx.eval([cache.state for cache in caches], *([logits] if last else []))
        return logits if last else None

    def begin_logits(self, ids: mx.array, caches: list[Any]) -> mx.array:
        """The logits ``(vocabulary,)`` after ids ``(1, t)`` that follow those in the caches; nothing is evaluated."""
        with on_device(self.device), self._network.mode(differentiated=False), self._placed(()):
            return self._rows(ids, mx.array([ids.shape[1] - 1]), cache=caches)[0]

    # ------------------------------------------------------------------------------------------

    @contextmanager
    def _placed(self, paths: Sequence[str]) -> Iterator[None]:
        """Within it the places at ``paths`` are adapted: what was recorded outlives ``remove_adapter``."""
        wanted = set(paths)
        for place in self._places:
            place.expect_own(self._seats)
        missing = [place for place in self._places if place.path in wanted and not place.is_adapted(self._seats)]
        for place in missing:
            place.put(AdaptedLinear(place.linear, place.path, self._seats))
        try:
            yield
        finally:
            for place in missing:
                place.put(place.linear)

    def _mode(self) -> Hashable:
        return cast("Hashable", self._adapter)

    def _compute_dtype(self) -> DType:
        for place in self._places:
            weight = place.linear.scales if is_quantized(place.linear) else place.linear.weight
            if mx.issubdtype(weight.dtype, mx.floating):
                return DType.of(weight.dtype)
        return self._logits_dtype
