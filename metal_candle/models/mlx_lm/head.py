"""The logits of some positions of an mlx-lm model: only these meet the vocabulary head, where that is proven equal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

PROBE_IDS = (2, 5)
PROBE_ROWS = (7, 0, 3)
# Products of other shapes round otherwise: up to some units in the last place of the largest logit.
TOLERANCE_ULPS = 64


class _Picking(Module):
    """A model's body, of whose hidden states ``(b, t, hidden)`` only some rows go on, as ``(1, n, hidden)``."""

    def __init__(self, body: Any, rows: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Beside the dict that holds a module's children: this is no part of the model.
        object.__setattr__(self, "_body", body)
        object.__setattr__(self, "_rows", rows)

    def __getattr__(self, name: str) -> Any:
        # The head reads the embeddings from the body where both are tied.
        return getattr(object.__getattribute__(self, "_body"), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The rows of what the body makes."""
        hidden = self._body(*args, **kwargs)
        if not isinstance(hidden, mx.array) or hidden.ndim != 3:
            raise _NoRowsError("its body gives no hidden states (b, t, hidden)")
        return hidden.reshape(-1, hidden.shape[-1])[self._rows][None]


class _NoRowsError(Exception):
    """Why a module's result cannot be picked from."""


class RowLogits:
    """The logits ``(n, vocabulary)`` at rows ``(n,)`` of ids ``(b, t)``, counted through ``b · t``.

    Everything after the body of a model is a function of each position alone in most architectures: head, scaling,
    soft capping. Where the body is, and whether that holds, is tried out: ``path`` is the body's path, ``None`` where
    all positions meet the head, and ``reason`` says why.
    """

    def __init__(self, model: Any, block: str) -> None:
        self._model = model
        self.path, self.reason = self._probed(block)

    def __call__(self, ids: mx.array, rows: mx.array, **kwargs: Any) -> mx.array:
        """The logits; ``kwargs`` go to the model, a cache say."""
        if self.path is None:
            logits: mx.array = self._model(ids, **kwargs)
            return logits.reshape(-1, logits.shape[-1])[rows]
        return self._through(self.path, ids, rows, **kwargs)

    def _through(self, path: str, ids: mx.array, rows: mx.array, **kwargs: Any) -> mx.array:
        logits: mx.array = _shadow(self._model, path.split("."), lambda body: _Picking(body, rows))(ids, **kwargs)
        return logits[0]

    def _probed(self, block: str) -> tuple[str | None, str]:
        """The innermost module around the blocks after which every position is on its own."""
        names = block.split(".")
        around = [".".join(names[:end]) for end in range(len(names) - 1, 0, -1)]
        bodies = [path for path in around if isinstance(_at(self._model, path), Module)]
        ids, rows = mx.arange(10, dtype=mx.uint32).reshape(PROBE_IDS) % 3, mx.array(PROBE_ROWS)
        whole = self._model(ids)
        expected = whole.reshape(-1, whole.shape[-1])[rows]
        unit = mx.finfo(expected.dtype).eps * TOLERANCE_ULPS
        expected = expected.astype(mx.float32)
        reason = "the blocks stand in the model itself"
        for path in bodies:
            try:
                found = self._through(path, ids, rows)
            except (_NoRowsError, AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
                reason = f"{path}: {error}"
                continue
            if found.shape != expected.shape:
                reason = f"{path}: logits {found.shape} instead of {expected.shape}"
                continue
            apart = float(mx.abs(found.astype(mx.float32) - expected).max())
            size = float(mx.abs(expected).max())
            reason = f"{apart:.1e} apart from the logits of all rows, which reach {size:.3g}"
            if size > 0 and apart <= unit * size:
                return path, reason
            reason = f"{path}: {reason}"
        return None, reason


def _shadow(model: Any, names: list[str], change: Callable[[Any], Any]) -> Any:
    """The model with another module at a path. The model itself is not touched: what is around is copied, shallowly."""
    if not names:
        return change(model)
    shadow = copy.copy(model)
    shadow[names[0]] = _shadow(model[names[0]], names[1:], change)
    return shadow


def _at(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = model[int(name)] if isinstance(model, list) else model.get(name) if isinstance(model, dict) else None
    return model
