"""From token ids to the logits of the next token, keeping the keys and values of those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import mlx.core as mx
import numpy as np

from .. import settings
from ..dtype import DType
from ..error import InferenceError
from ..error.text import described
from ..graph.evaluate import on_device
from ..graph.node import GraphNode, placeholder, topological_order
from ..graph.operation import Meta, to_numpy
from ..graph.operations.ids import known_below
from ..graph.replay import Replay
from ..models.decoder import Decoder
from ..models.layout import AtTables, hidden_value
from ..nn.kv_cache import ConcatKvCache, KvBuffer, RecordedCache
from ..shape import Shape
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from ..tensor.lazy import LazyTensor
from .config import GeneratorConfig
from .host import HostPlan
from .mlx_lm_step import OwnCachesStep
from .prefill import Past, prefill

Logits = np.ndarray[Any, Any]
Before = Callable[[int], None]


class Step(Protocol):
    """What a generator needs of a model: one sequence, read piece by piece."""

    def feed(self, ids: Sequence[int], before: Before = ...) -> Logits:
        """The logits ``(vocabulary,)`` after these ids, which follow those of earlier calls.

        ``before`` is called before each piece with the number of ids that are done; it may raise.
        """


@runtime_checkable
class Following(Protocol):
    """A step that can go on with a token which is still being computed."""

    def can_follow(self) -> bool:
        """Whether that saves time: where a device computes while Python prepares the next step."""

    def follow(self, token: mx.array) -> mx.array:
        """The logits ``(vocabulary,)`` after one more token, uint32 ``()``; neither is evaluated."""

    def keep(self, token: int) -> None:
        """Which token ``follow`` was given."""


class RowInputs(Protocol):
    """Inputs of a step besides ids and positions, which tell rows apart: the adapters of ``AdapterRows``."""

    def place(self, rows: int) -> list[GraphNode]:
        """Placeholders for so many rows, which what is recorded next depends on."""

    def select(self, rows: Sequence[int]) -> list[Any]:
        """Their values for these rows, NumPy arrays; what is computed next takes them, too."""


class _NoInputs:
    def place(self, rows: int) -> list[GraphNode]:
        return []

    def select(self, rows: Sequence[int]) -> list[Any]:
        return []


class CachedStep:
    """A decoder's step: prompts in one evaluation or several, then one token for each row from a recorded plan.

    The step is recorded once per prompt, with what the model and its adapters are then, and replayed for each
    token: by NumPy where ``HostPlan`` takes it, else by MLX. Rows of unequal length end together, so that all of
    them append at the same place; a mask hides the places before a row begins.
    """

    def __init__(self, model: Decoder, config: GeneratorConfig | None = None, inputs: RowInputs | None = None) -> None:
        self._model, self._config = model, config or GeneratorConfig()
        self._row_inputs = inputs or _NoInputs()
        self._windows = [model.config.window(layer) for layer in range(model.num_layers())]
        self._ids: list[int] = []  # of a single row: what is in the cache
        self._plan: HostPlan | Replay | None = None

    # --- one row ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ids)

    def feed(self, ids: Sequence[int], before: Before = lambda done: None) -> Logits:
        """The logits after a prompt at the first call, then after one more token."""
        if self._plan is None:
            logits = self.start([ids], before)
            self._ids = list(ids)
        else:
            logits = self.advance(ids)
            self._ids += ids
        row: Logits = logits[0]
        return row

    def can_follow(self) -> bool:
        """Whether MLX computes the step on a GPU."""
        return isinstance(self._plan, Replay) and not self._model.device.is_cpu()

    def follow(self, token: mx.array) -> mx.array:
        """The logits ``(vocabulary,)`` after one more token, which ``keep`` names later; only after ``feed``."""
        with known_below(self._model.vocab_size()):
            return self._begun(token.reshape(1, 1)).reshape(-1)

    def keep(self, token: int) -> None:
        """Count the token that ``follow`` was given among those that are in the cache."""
        self._ids.append(token)

    def resume(self, ids: Sequence[int], before: Before = lambda done: None) -> tuple[Logits, int]:
        """``feed`` for another prompt, of which what it has in common with the ids so far is not computed again.

        Gives the logits and how many ids were taken over: none where the model or its adapters have changed since, or
        where the cache has let go of them.
        """
        common = next((i for i, (a, b) in enumerate(zip(self._ids, ids)) if a != b), min(len(self._ids), len(ids)))
        common = min(common, len(ids) - 1)
        past = self._past(common) if self._plan is not None and common else None
        if past is None or not self._is_current():
            past, common = None, 0
        self._plan = None
        logits = self.start([ids], before, past, common)
        self._ids = list(ids)
        return logits[0], common

    def _past(self, count: int) -> Past | None:
        past = []
        for pair in self._buffers:
            arrays = [buffer.past(count) for buffer in pair]
            if arrays[0] is None:
                return None
            past.append((mx.array(arrays[0]), mx.array(arrays[1])))
        mx.eval(past)
        return past

    def _is_current(self) -> bool:
        """Whether what the plan computes with is what the model would compute with now."""
        now = self._constants(self._recorded(self._new_buffers())[0])
        return len(now) == len(self._held) and all(a is b for a, b in zip(now, self._held))

    @staticmethod
    def _constants(output: GraphNode) -> list[Any]:
        order = topological_order([output], stop=lambda node: node.value is not None)
        return [node.value for node in order if node.value is not None]

    # --- any number of rows -------------------------------------------------------------------

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        before: Before = lambda done: None,
        past: Past | None = None,
        begin: int = 0,
    ) -> Logits:
        """The logits ``(rows, vocabulary)`` after prompts, the longest first.

        ``past`` has the keys and values of the first ``begin`` ids.
        """
        self._at = len(prompts[0])
        self._left = np.array([self._at - len(prompt) for prompt in prompts])
        self._rows = list(range(len(prompts)))
        logits, arrays = prefill(
            self._model,
            prompts,
            self._config.span,
            self._config.prefill_chunk,
            past,
            begin,
            before,
            lambda begun: self._row_inputs.select(range(begun)),
        )
        self._buffers = self._new_buffers()
        self._record()
        for pair, kept in zip(self._buffers, arrays):
            for buffer, array in zip(pair, kept):
                buffer.start(*((np, np.array(array)) if isinstance(self._plan, HostPlan) else (mx, array)))
        return to_numpy(logits).reshape(len(prompts), -1)

    def advance(self, tokens: Sequence[int]) -> Logits:
        """The logits ``(rows, vocabulary)`` after one more token for each row."""
        ids = np.array(tokens, np.uint32)[:, None]
        if isinstance(self._plan, HostPlan):
            floats, others = self._next_place()
            return np.asarray(self._plan.run([ids, *floats, *others]).reshape(len(tokens), -1))
        logits = self._begun(mx.array(ids))
        mx.eval(logits)
        return to_numpy(logits).reshape(len(tokens), -1)

    def _begun(self, ids: mx.array) -> mx.array:
        """MLX's plan for one more token of each row, ``(rows, 1)``, not yet evaluated."""
        assert isinstance(self._plan, Replay)
        floats, others = self._next_place()
        with on_device(self._model.device):
            tables = [mx.array(values).astype(self._model.dtype.mlx_) for values in floats]
            (logits,) = self._plan.run([ids, *tables, *[mx.array(values) for values in others]])
        return cast("mx.array", logits)

    def _next_place(self) -> tuple[list[Any], list[Any]]:
        """Go on by a place: its rotary tables and masks, and the inputs that tell rows apart."""
        positions = np.maximum(self._at - self._left, 0) if self._left.any() else np.array([self._at])
        cos, sin = self._model.rotary.rows(0, int(positions.max()) + 1)
        tables = [table[positions][:, None] if self._left.any() else table[positions] for table in (cos, sin)]
        masks = [self._mask(window) for window in self._masked]
        others = self._row_inputs.select(self._rows)
        self._at += 1
        return [*tables, *masks], others

    def take(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows only, by their places among those that there are."""
        self._left, self._rows = self._left[list(rows)], [self._rows[i] for i in rows]
        spare = int(self._left.min())
        self._left, self._at = self._left - spare, self._at - spare
        for pair in self._buffers:
            for buffer in pair:
                buffer.take(rows, self._at)
        self._record()

    # --- the plan -----------------------------------------------------------------------------

    def _new_buffers(self) -> list[tuple[KvBuffer, KvBuffer]]:
        room = self._config.room(self._model.config.max_position_embeddings)
        spans = [self._config.span(window) for window in self._windows]
        return [(KvBuffer(*span, room), KvBuffer(*span, room)) for span in spans]

    def _record(self) -> None:
        output, inputs = self._recorded(self._buffers)
        self._held = self._constants(output)
        refusal = HostPlan.refusal(output)
        if "graph" in settings.DEBUG.words:
            settings.log("graph", "a step of generation: %s", "by NumPy" if refusal is None else f"by MLX: {refusal}")
        self._plan = HostPlan(output, inputs) if refusal is None else Replay([output], inputs)

    def _recorded(self, buffers: Sequence[tuple[KvBuffer, KvBuffer]]) -> tuple[GraphNode, list[GraphNode]]:
        """A step for one token of each row, and its inputs: ids ``(b, 1)``, rotary tables, masks, others."""
        model, rows = self._model, len(self._left)
        apart = bool(self._left.any())

        def argument(shape: tuple[int, ...], dtype: DType) -> LazyTensor:
            return LazyTensor(placeholder(Meta(Shape(shape), dtype), model.device))

        half = model.config.head_dim() // 2
        ids = argument((rows, 1), DType.U32)
        cos, sin = (argument((rows, 1, half) if apart else (1, half), model.dtype) for _ in range(2))
        self._masked = list(dict.fromkeys(self._windows)) if apart else []
        masks = {window: argument((rows, 1, 1, 1), model.dtype) for window in self._masked}
        others = self._row_inputs.place(rows)
        caches: list[ConcatKvCache] = [RecordedCache(*pair) for pair in buffers]
        output = model.forward(ids, caches=caches, layout=AtTables(cos, sin, masks))._node
        return output, [ids._node, cos._node, sin._node, *[mask._node for mask in masks.values()], *others]

    def _mask(self, window: int | None) -> Any:
        """What hides the places before each row's beginning, ``(b, 1, 1, s)``."""
        seen = self._config.span(window).window
        places = np.arange(0 if seen is None else max(0, self._at + 1 - seen), self._at + 1)
        hidden = np.float32(hidden_value(self._model.dtype))
        return np.where(places < self._left[:, None], hidden, np.float32(0))[:, None, None]


class FullStep:
    """The step of a model that keeps nothing: the whole sequence is computed again for each token."""

    def __init__(self, model: Any) -> None:
        self._model, self._ids = model, list[int]()

    def feed(self, ids: Sequence[int], before: Before = lambda done: None) -> Logits:
        """The logits after all ids so far. Raises ``InferenceError.Failed`` where the model makes none."""
        before(0)
        self._ids += ids
        device = getattr(self._model, "device", None)
        logits = self._model.forward(Tensor.new([self._ids], device, DType.U32))
        self._expect_logits(logits)
        return to_numpy(logits.narrow(1, len(self._ids) - 1, 1).mlx()).reshape(-1)

    def _expect_logits(self, logits: object) -> None:
        tokens = len(self._ids)
        got = described(logits)
        if isinstance(logits, TensorBase):
            if len(logits.shape) == 3 and logits.shape[:2] == (1, tokens) and logits.dtype.is_float():
                return
            got = f"{tuple(logits.shape)} {logits.dtype}"
        model = type(self._model).__name__
        raise InferenceError.Failed(
            reason=f"forward of {model} gave {got}; takes logits (1, {tokens}, vocabulary) of a float dtype"
        )


def step_of(model: Any, config: GeneratorConfig | None = None) -> Step:
    """A fresh step of a ``Decoder``, of what keeps caches of its own, or of what makes logits ``(1, t, v)`` of ids.

    Raises ``InferenceError.InvalidConfig`` for a cache that only a ``Decoder`` has.
    """
    config = config or GeneratorConfig()
    if isinstance(model, Decoder):
        return CachedStep(model, config)
    own = hasattr(model, "next_logits")
    if config.cache != "growing":
        why = "has caches of its own" if own else "keeps no keys and values"
        raise InferenceError.InvalidConfig(
            reason=f"cache is {config.cache!r}, but {type(model).__name__} {why}; takes a Decoder"
        )
    return OwnCachesStep(model, config.prefill_chunk) if own else FullStep(model)
