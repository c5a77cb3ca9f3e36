"""Gradients made smaller before a step: by their global norm, or each element."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from typing import Union

from ...error import ArgumentTypeError, ArgumentValueError, TrainingError
from ...error.text import described
from ...graph.evaluate import evaluate
from ...graph.node import GraphNode, current_trace, record
from ...graph.operation import Meta, Operation
from ...graph.operations.clip import ClampGradients, ClipFactor, GlobalNorm, ScaleGradients
from ...graph.operations.counts import number
from ...graph.operations.structure import Pick
from ...tensor.arguments import tensors
from ...tensor.base import TensorBase
from ...tensor.eager import Tensor
from ...tensor.grad_store import GradStore
from ...tensor.var import Var
from .param_group import listed_vars

Gradients = Union[GradStore, MutableMapping[Var, Tensor]]


def global_norm(gradients: Gradients | Iterable[Tensor]) -> Tensor:
    """The square root of the sum of all squares, a scalar in F32. Raises ``TrainingError.StateError`` for none.

    Of the gradients that ``loss.backward()`` gives, a dict's, or those in a list.
    """
    if isinstance(gradients, (GradStore, MutableMapping)):
        _, nodes = _chosen("global_norm", gradients, None)
    else:
        nodes = [gradient._node for gradient in tensors("global_norm", gradients)]
    if not nodes:
        raise TrainingError.StateError(reason="global_norm: there are no gradients")
    return Tensor._from_node(record(GlobalNorm(), tuple(nodes)))


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What to multiply gradients by so that their global norm is at most ``max_norm``: min(1, max / norm)."""
    if not isinstance(norm, TensorBase):
        raise ArgumentTypeError(f"clip_factor: got norm {described(norm)}; takes a tensor, as global_norm gives")
    return norm._record(ClipFactor(checked_norm("clip_factor", max_norm)))


def clip_grad_norm(grads: Gradients, max_norm: float, vars: Iterable[Var] | None = None) -> Tensor:
    """Scale gradients, in place, so that their norm over all elements is at most ``max_norm``; gives the norm before.

    ``vars`` are those whose gradients count and are scaled, by default all of ``grads``. One evaluation. A norm that
    is not finite makes them NaN (for an infinite one, those that are infinite, and the others 0), as in PyTorch: look
    at the norm first if that may happen. Without any gradient the norm is 0. An optimizer's ``step(grads,
    max_norm=…)`` does the same on the way, without storing the scaled gradients.

    PyTorch: ``torch.nn.utils.clip_grad_norm_``.
    """
    limit = checked_norm("clip_grad_norm", max_norm)
    keys, nodes = _chosen("clip_grad_norm", grads, vars)
    if not nodes:
        return Tensor.new(0.0)
    norm = record(GlobalNorm(), tuple(nodes))
    factor = record(ClipFactor(limit), (norm,))
    _replace(grads, keys, ScaleGradients(), [*nodes, factor], [norm])
    return Tensor._from_node(norm)


def clip_grad_value(grads: Gradients, clip_value: float, vars: Iterable[Var] | None = None) -> None:
    """Bring every element of the gradients, in place, to at least ``-clip_value`` and at most ``clip_value``.

    ``vars`` are those whose gradients are changed, by default all of ``grads``. One evaluation. NaN stays NaN.

    PyTorch: ``torch.nn.utils.clip_grad_value_``.
    """
    limit = number("clip_grad_value", "clip_value", clip_value)
    if not limit >= 0:
        raise ArgumentValueError(f"clip_grad_value: got clip_value {clip_value}; takes at least 0")
    keys, nodes = _chosen("clip_grad_value", grads, vars)
    if nodes:
        _replace(grads, keys, ClampGradients(limit), nodes, [])


def checked_norm(op: str, max_norm: float) -> float:
    """A norm as a float. Raises ``ArgumentValueError`` for a negative one and for NaN."""
    limit = number(op, "max_norm", max_norm)
    if not limit >= 0:
        raise ArgumentValueError(f"{op}: got max_norm {max_norm}; takes at least 0")
    return limit


def expect_gradients(op: str, grads: object) -> None:
    """Raise ``ArgumentTypeError`` unless these are gradients by variable."""
    if not isinstance(grads, (GradStore, MutableMapping)):
        raise ArgumentTypeError(
            f"{op}: got {described(grads)}; takes the GradStore of loss.backward(), or a dict from Var to gradient"
        )
    if isinstance(grads, GradStore):
        return
    for var, gradient in grads.items():
        if not (isinstance(var, Var) and isinstance(gradient, TensorBase)):
            got = f"{described(var)} and {described(gradient)}"
            raise ArgumentTypeError(f"{op}: got {got} in the dict of gradients; takes a Var and a tensor for each")


def _chosen(op: str, grads: Gradients, vars: Iterable[Var] | None) -> tuple[list[object], list[GraphNode]]:
    """The keys of the gradients that are meant, a GradStore's ids, and the gradients."""
    expect_gradients(op, grads)
    named = None if vars is None else listed_vars(op, vars)
    if isinstance(grads, GradStore):
        ids = grads.get_ids() if named is None else dict.fromkeys(var.id() for var in named if var in grads)
        return list(ids), [grads.get_id(id)._node for id in ids]  # type: ignore[union-attr]
    wanted = None if named is None else {var.id() for var in named}
    keys = [var for var in grads if wanted is None or var.id() in wanted]
    return list(keys), [grads[var]._node for var in keys]


def _replace(
    grads: Gradients, keys: Sequence[object], change: Operation, inputs: Sequence[GraphNode], others: list[GraphNode]
) -> None:
    """Put what ``change`` gives in the place of the gradients, computed together with ``others``."""
    changed = record(change, tuple(inputs))
    if isinstance(changed.meta, Meta):
        parts = [changed]
    else:
        parts = [record(Pick(index), (changed,)) for index in range(len(keys))]
    del changed
    if current_trace() is None:
        evaluate([*parts, *others])
    for key, part in zip(keys, parts):
        if isinstance(grads, GradStore):
            grads.insert_id(key, Tensor._from_node(part))  # type: ignore[arg-type]
        else:
            grads[key] = Tensor._from_node(part)  # type: ignore[index]
