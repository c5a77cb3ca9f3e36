"""Optimizers over variables. candle: ``candle_nn::optim``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..dtype import DType
from ..error import TrainingError
from ..graph.node import record
from ..graph.operations.structure import Pick
from ..graph.operations.update import AdamWUpdate, GlobalNorm
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from ..tensor.grad_store import GradStore, backward
from ..tensor.var import Var


@dataclass(frozen=True)
class ParamsAdamW:
    """candle's defaults."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidConfig`` for numbers outside their ranges."""
        checks = {
            "lr": self.lr >= 0,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "eps": self.eps > 0,
            "weight_decay": self.weight_decay >= 0,
        }
        for name, good in checks.items():
            if not good:
                takes = {"lr": "at least 0", "eps": "more than 0", "weight_decay": "at least 0"}.get(
                    name, "0 <= it < 1"
                )
                raise TrainingError.InvalidConfig(reason=f"AdamW: {name} is {getattr(self, name)}; takes {takes}")


# Elements of a group of variables that are updated as one array: it stays in the cache.
GROUP = 2**17


class AdamW:
    """AdamW with bias correction. candle: ``candle_nn::AdamW``.

    The rate, the count of steps and the moments are variables, so that a compiled step reads and sets them.
    Variables are updated in groups, whose moments are kept flat, in F32. Integer variables are left out, as
    in candle.
    """

    def __init__(self, vars: Iterable[Var], params: ParamsAdamW | None = None) -> None:
        self._params = params or ParamsAdamW()
        self._params.validate()
        self._vars = [var for var in vars if var.dtype.is_float()]
        device = self._vars[0].device if self._vars else None
        self._rate = Var.new(self._params.lr, device, DType.F32)
        self._count = Var.new(0.0, device, DType.F32)
        self._groups = _grouped(self._vars)
        sizes = [sum(var.elem_count() for var in group) for group in self._groups]
        self._first = [Var.zeros((size,), DType.F32, device) for size in sizes]
        self._second = [Var.zeros((size,), DType.F32, device) for size in sizes]

    @classmethod
    def new_lr(cls, vars: Iterable[Var], lr: float) -> AdamW:
        """AdamW with candle's other defaults."""
        return cls(vars, ParamsAdamW(lr=lr))

    def params(self) -> ParamsAdamW:
        """The parameters; ``lr`` as it was at the start."""
        return self._params

    def learning_rate(self) -> float:
        """The rate in force."""
        return float(self._rate.to_scalar())

    def set_learning_rate(self, lr: float) -> None:
        """Use another rate from the next step on; a compiled step sees it too."""
        self._rate.set(Tensor.new(lr, self._rate.device, DType.F32))

    def step_count(self) -> int:
        """How many steps were made."""
        return int(self._count.to_scalar())

    def vars(self) -> list[Var]:
        """The variables it changes."""
        return self._vars

    def step(self, grads: GradStore | Mapping[Var, Tensor], factor: Tensor | None = None) -> None:
        """One update of every variable that has a gradient; the others stay as they are.

        ``factor``, a scalar, multiplies the gradients first, as clipping wants.
        """
        count = self._count + 1.0
        self._count.set(count)
        factor = Tensor.new(1.0, self._rate.device, DType.F32) if factor is None else factor
        p = self._params
        for group, first, second in zip(self._groups, self._first, self._second):
            gradients = [grads.get(var) for var in group]
            present = tuple(gradient is not None for gradient in gradients)
            if not any(present):
                continue
            update = AdamWUpdate(present, p.beta1, p.beta2, p.eps, p.weight_decay)
            given = [gradient for gradient in gradients if gradient is not None]
            inputs = (*group, *given, first, second, self._rate, count, factor)
            node = record(update, tuple(tensor._node for tensor in inputs))
            for i, target in enumerate((*group, first, second)):
                target.set(Tensor._from_node(record(Pick(i), (node,))))

    def backward_step(self, loss: TensorBase) -> None:
        """Gradients of ``loss``, then one update."""
        self.step(backward(loss, Tensor._from_node))

    def state(self) -> dict[str, Var]:
        """Count and moments by name; the moments of each group of variables are one flat array."""
        named = {"count": self._count}
        for i, (first, second) in enumerate(zip(self._first, self._second)):
            named[f"{i}.first"], named[f"{i}.second"] = first, second
        return named

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take count and moments as ``state()`` gave them. Raises ``TrainingError.StateError``."""
        own = self.state()
        if set(own) != set(state):
            raise TrainingError.StateError(reason=f"got {len(state)} entries for an optimizer that has {len(own)}")
        for name, target in own.items():
            target.set(state[name])


def _grouped(vars: list[Var]) -> list[list[Var]]:
    groups: list[list[Var]] = []
    size = GROUP
    for var in vars:
        if size + var.elem_count() > GROUP:
            groups.append([])
            size = 0
        groups[-1].append(var)
        size += var.elem_count()
    return groups


def global_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The square root of the sum of all squares, a scalar in F32. Raises ``TrainingError.StateError``."""
    nodes = tuple(gradient._node for gradient in gradients)
    if not nodes:
        raise TrainingError.StateError(reason="global_norm: there are no gradients")
    return Tensor._from_node(record(GlobalNorm(), nodes))


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What to multiply gradients by so that their global norm is at most ``max_norm``: min(1, max / norm)."""
    return (norm + 1e-6).recip().affine(max_norm, 0.0).minimum(1.0)
