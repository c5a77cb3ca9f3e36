"""An optimizer's state as tensors by name, out and in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from ...error import ArgumentTypeError, TrainingError
from ...error.text import described, first_few, shown
from ...graph.node import GraphNode, leaf
from ...tensor.assign import set_all
from ...tensor.base import TensorBase
from ...tensor.eager import CellTensor, Tensor
from ...tensor.var import Var
from .bundle import Bundle

MOST = 8
"""How many names of a kind an error lists."""


def read(count: Var, rate: Var, bundles: Sequence[Bundle]) -> dict[str, Tensor]:
    """Copies of all values."""
    arrays = {name: array for bundle in bundles for name, array in bundle.state().items()}
    # Parts of one array would keep all of it, and lie in memory as no file has them.
    arrays = {name: mx.contiguous(array) for name, array in arrays.items()}
    mx.eval(list(arrays.values()))
    moments = {name: Tensor.from_mlx(array, count.device) for name, array in arrays.items()}
    order = sorted(moments, key=lambda name: int(name.partition(".")[0]))
    return {"step": count.copy(), "learning_rate": rate.copy(), **{name: moments[name] for name in order}}


def checked(name: str, state: Mapping[str, TensorBase], own: Mapping[str, Tensor]) -> dict[str, mx.array]:
    """The arrays of a state like ``own``. Raises ``TrainingError.StateError`` with all that is wrong with it."""
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(f"load_state: got {described(state)}; takes a dict of tensors, as state() gives")
    wrong = []
    missing = [entry for entry in own if entry not in state]
    extra = [shown(entry) for entry in state if entry not in own]
    if missing:
        wrong.append(f"missing {_list(missing)}")
    if extra:
        wrong.append(f"unknown {_list(extra)}")
    unlike = []
    for entry, like in own.items():
        got = state.get(entry, like)
        if not isinstance(got, TensorBase):
            unlike.append(f"{entry} is {described(got)}, takes a tensor")
        elif got.shape != like.shape:
            unlike.append(f"{entry} has shape {list(got.shape)}, takes {list(like.shape)}")
        elif got.dtype is not like.dtype:
            unlike.append(f"{entry} is {got.dtype}, takes {like.dtype}")
    if unlike:
        wrong.append(_list(unlike))
    if wrong:
        raise TrainingError.StateError(reason=f"{name}.load_state: {'; '.join(wrong)}")
    return {entry: state[entry].mlx() for entry in own}


def write(arrays: Mapping[str, mx.array], count: Var, rate: Var, bundles: Sequence[Bundle]) -> None:
    """Set all values."""
    cells: list[tuple[GraphNode, Sequence[CellTensor]]] = [
        (leaf(arrays["step"], count.device), [count]),
        (leaf(arrays["learning_rate"], rate.device), [rate]),
    ]
    for bundle in bundles:
        for name, flat in bundle.moments.items():
            parts = [arrays[f"{place}.{name}"].reshape(-1) for place in bundle.places]
            cells.append((leaf(mx.concatenate(parts), flat.device), [flat]))
    set_all(cells)


def _list(names: Sequence[str]) -> str:
    return first_few(names, MOST)
