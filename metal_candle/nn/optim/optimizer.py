"""``Optimizer``: what all of them do: one evaluation per update, learning rates, state. candle: ``Optimizer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np

from ...constructors import New
from ...dtype import DType
from ...error import ArgumentTypeError, ArgumentValueError, TrainingError
from ...error.text import described
from ...graph.differentiate import gradients
from ...graph.node import GraphNode, current_trace, record
from ...graph.operations.affine import Affine
from ...graph.operations.clip import ClipFactor, GlobalNorm
from ...graph.operations.counts import number
from ...graph.operations.update import Update
from ...tensor.assign import set_all
from ...tensor.base import TensorBase
from ...tensor.eager import CellTensor, Tensor
from ...tensor.grad_store import GradStore, backward
from ...tensor.growth import growth
from ...tensor.var import Var
from .bundle import Bundle, cell, distribute
from .clip import Gradients, checked_norm, expect_gradients
from .param_group import GroupParams, Vars, grouped
from .params import Params
from .state import checked, read, write

P = TypeVar("P", bound=Params)
Self = TypeVar("Self", bound="Optimizer[Any]")

_next = Affine(1.0, 1.0)


class Optimizer(New, Generic[P]):
    """Base of the optimizers: ``SGD``, ``Adam``, ``AdamW``, ``Muon``. candle: ``candle_nn::optim::Optimizer``.

    ``config`` is its parameters, ``SGD(vars, ParamsSGD(lr=0.1, momentum=0.9))``, which may be given one by one,
    ``SGD(vars, lr=0.1, momentum=0.9)``, or a learning rate, with others after it or none: ``SGD(vars, 0.1)``.
    ``vars`` are variables, or parameter groups (``ParamGroup``). Integer ones are left out, as in candle. One that is
    there twice, itself or another ``Var`` of the same storage, counts once; in two groups it is an error.

    A step is one evaluation, however many variables and groups there are, and none of its own inside a function that
    ``compile`` traces. It is computed in F32, of F64 variables in F64, and rounded to the variable's dtype at the end.
    The count of steps, the learning rate and the moments are variables, which a compiled step reads and sets: it sees
    ``set_learning_rate``. A loss or gradient that is NaN makes variables and moments NaN, as in candle and PyTorch.
    Two threads must not step one optimizer at once.
    """

    config_type: ClassVar[type[Any]]
    record_type: ClassVar[type[Update]]

    def __init__(self, vars: Vars, config: P | float | None = None, **numbers: float) -> None:
        groups = grouped(self._name(), vars)
        self._group_params: GroupParams[P] = GroupParams(self._configured(config, numbers), groups)
        self._owner: dict[int, int] = {}
        self._vars: list[Var] = []
        self._bundles: list[Bundle] = []
        self._traced = False
        chosen = [self._chosen(group.vars, index) for index, group in enumerate(groups)]
        self._start(self._group_params.base.lr, 0.0)
        for index, numbered in enumerate(chosen):
            distribute(numbered, index, self._moments(self._group_params.group(index)), self._bundles)

    def __repr__(self) -> str:
        params = self._group_params.base if current_trace() is not None else self.params()
        named = "".join(f", {field.name}={getattr(params, field.name)!r}" for field in fields(params))
        groups = f" in {len(self._group_params.overrides)} groups" if any(self._group_params.overrides) else ""
        return f"{self._name()}({len(self._vars)} vars{groups}{named})"

    # --- what each optimizer says of itself ---------------------------------------------------

    def _moments(self, params: P) -> tuple[str, ...]:
        """The names of what it keeps for each element."""
        raise AssertionError(f"{self._name()} declares no moments")

    def _numbers(self, params: P) -> tuple[Any, ...]:
        """The parameters of its record."""
        raise AssertionError(f"{self._name()} declares no numbers")

    def _check(self, var: Var, place: int) -> None:
        """Raise where it cannot update a variable."""

    # --- construction -------------------------------------------------------------------------

    @classmethod
    def empty(cls: type[Self], config: Any) -> Self:
        """Without variables, for ``push``. candle: ``Optimizer::empty``."""
        return cls([], config)

    @classmethod
    def from_slice(cls: type[Self], vars: Sequence[Var], config: Any) -> Self:
        """The constructor. candle: ``Optimizer::from_slice``."""
        return cls(vars, config)

    def push(self, var: Var) -> None:
        """One more variable, with the optimizer's own numbers. candle: ``SGD::push``.

        Raises ``TrainingError.StateError`` after a step was compiled, which would not know of it.
        """
        self._refuse_after_tracing("push: the variable")
        index = self._group_params.plain()
        chosen = self._chosen(grouped("push", [var])[0].vars, index)
        self._start(self.learning_rate(), self._count.to_scalar())
        distribute(chosen, index, self._moments(self._group_params.group(index)), self._bundles)

    def _name(self) -> str:
        return type(self).__name__

    def _configured(self, config: Any, numbers: dict[str, float]) -> P:
        kind = self.config_type
        takes = f"{kind.__name__}, or a learning rate, and {', '.join(field.name for field in fields(kind))} by name"
        if not isinstance(config, kind):
            if config is not None:
                numbers = {"lr": number(self._name(), "the configuration", config, takes), **numbers}
            try:
                config = kind(**numbers)
            except TypeError:
                given = ", ".join(numbers) or "no configuration"
                raise ArgumentTypeError(f"{self._name()}: got {given}; takes {takes}") from None
        elif numbers:
            raise ArgumentTypeError(f"{self._name()}: got {kind.__name__} and {', '.join(numbers)}; takes {takes}")
        config.validate()
        return cast("P", config)

    def _start(self, lr: float, count: float) -> None:
        """Rate and count, on the variables' device; the rate as exact as the widest of them."""
        device = self._vars[0].device if self._vars else None
        wide = any(var.dtype is DType.F64 for var in self._vars)
        self._lr = lr
        self._rate = cell(Tensor.new(lr, device, DType.F64 if wide else DType.F32))
        self._count = cell(Tensor.new(count, device, DType.F32))

    def _chosen(self, vars: list[Var], group: int) -> list[tuple[int, Var]]:
        """Those it updates, each with its number: of float dtype, each once. Raises for one that another group has."""
        found = []
        for var in vars:
            owner = self._owner.get(var.id())
            if owner is not None and owner != group:
                raise ArgumentValueError(
                    f"{self._name()}: a variable of shape {list(var.shape)} is in group {owner} and in group {group}; "
                    "takes it in one"
                )
            if owner is None and var.dtype.is_float():
                self._check(var, len(self._vars))
                if self._vars and var.device != self._vars[0].device:
                    raise ArgumentValueError(
                        f"{self._name()}: got variables on {self._vars[0].device} and {var.device}; takes one device"
                    )
                self._owner[var.id()] = group
                found.append((len(self._vars), var))
                self._vars.append(var)
        return found

    # --- numbers ------------------------------------------------------------------------------

    def params(self) -> P:
        """The parameters, with the learning rate in force; groups may have others. candle: ``AdamW::params``."""
        params: P = replace(self._group_params.base, lr=self.learning_rate())
        return params

    def set_params(self, params: P) -> None:
        """Use others from the next step on; what a group has of its own stays. candle: ``AdamW::set_params``.

        Raises ``TrainingError.StateError`` where more than the learning rate changes after a step was compiled, which
        would keep what it was traced with, and where moments would come or go.
        """
        if not isinstance(params, self.config_type):
            raise ArgumentTypeError(f"set_params: got {described(params)}; takes {self.config_type.__name__}")
        params.validate()
        numbers = self._group_params
        # Groups keep their ratio to the first learning rate, which the new one takes the place of.
        new = replace(params, lr=numbers.base.lr)
        if new != numbers.base:
            self._refuse_after_tracing("set_params: what is not the learning rate")
        for group in range(len(numbers.overrides)):
            if self._moments(numbers.group(group, new)) != self._moments(numbers.group(group)):
                raise TrainingError.StateError(reason="set_params: momentum would come or go; takes another optimizer")
        numbers.base = new
        self.set_learning_rate(params.lr)

    def learning_rate(self) -> float:
        """The rate in force: of a group with its own, see ``learning_rates``."""
        value = float(self._rate.to_scalar())
        # Exactly what was set, where that is what the variable still holds.
        held = self._lr if self._rate.dtype is DType.F64 else float(np.float32(self._lr))
        return self._lr if value == held else value

    def learning_rates(self) -> list[float]:
        """The rate in force of every group."""
        return [self.learning_rate() * ratio for ratio in self._group_params.ratios]

    def set_learning_rate(self, lr: float) -> None:
        """Use another rate from the next step on; a compiled step sees it too. Groups keep their ratios to it.

        Raises ``TrainingError.InvalidConfig`` for a negative one and for NaN, as the constructor does.
        """
        rate = number("set_learning_rate", "lr", lr)
        if not rate >= 0:
            raise TrainingError.InvalidConfig(reason=f"set_learning_rate: lr is {described(rate)}; takes at least 0")
        self._lr = rate
        self._rate.set(Tensor.new(self._lr, self._rate.device, self._rate.dtype))

    def step_count(self) -> int:
        """How many steps were made."""
        return int(self._count.to_scalar())

    def vars(self) -> list[Var]:
        """The variables it changes, in order."""
        return list(self._vars)

    # --- steps --------------------------------------------------------------------------------

    def step(self, grads: Gradients, factor: Tensor | None = None, max_norm: float | None = None) -> Tensor | None:
        """One update of every variable that has a gradient; the others stay as they are. One evaluation.

        ``factor``, a scalar, multiplies the gradients first. ``max_norm`` instead clips them: they are scaled so that
        the norm of all of them together is at most that, and the norm before is what it returns; see
        ``clip_grad_norm``. Steps without any gradient count, as in candle.

        candle: ``Optimizer::step(&mut self, grads: &GradStore) -> Result<()>``
        """
        expect_gradients("step", grads)
        if isinstance(grads, GradStore):
            known = {int(id): grads.get_id(id)._node for id in grads.get_ids()}  # type: ignore[union-attr]
        else:
            known = {int(var.id()): gradient._node for var, gradient in grads.items()}
        return self._update(known, factor, max_norm, [])

    def backward_step(self, loss: TensorBase, max_norm: float | None = None) -> Tensor | None:
        """Gradients of ``loss`` and one update by them, with the loss if it is lazy, all in one evaluation.

        ``max_norm`` clips as in ``step``. Raises as ``loss.backward()``.

        candle: ``Optimizer::backward_step(&mut self, loss: &Tensor) -> Result<()>``
        """
        if not isinstance(loss, TensorBase):
            raise ArgumentTypeError(f"backward_step: got {described(loss)}; takes a loss (step takes gradients)")
        if not loss.track_op():  # says why, where it was cut off by compile
            return self.step(backward(loss, Tensor._from_node), max_norm=max_norm)
        known = {int(variable.id): node for variable, node in gradients(loss._node).items()}
        norm = self._update(known, None, max_norm, [loss._node])
        if current_trace() is None:
            growth.after_backward(loss._node)
        return norm

    def _update(
        self, known: dict[int, GraphNode], factor: Tensor | None, max_norm: float | None, others: list[GraphNode]
    ) -> Tensor | None:
        """Record an update by the gradients of ``known``, which it empties: nothing else may hold them then."""
        if factor is not None and max_norm is not None:
            raise ArgumentValueError("step: got both factor and max_norm; takes one of them")
        if factor is not None and not isinstance(factor, TensorBase):
            raise ArgumentTypeError(f"step: got factor {described(factor)}; takes a scalar tensor")
        if factor is not None and factor.shape:
            raise ArgumentValueError(f"step: got a factor of shape {list(factor.shape)}; takes a scalar")
        self._traced = self._traced or current_trace() is not None
        norm: GraphNode | None = None
        scale = None if factor is None else factor._node
        if max_norm is not None:
            limit = checked_norm("step", max_norm)
            every = tuple(known[id] for var in self._vars if (id := int(var.id())) in known)
            norm = record(GlobalNorm(), every) if every else Tensor.new(0.0, self._rate.device)._node
            scale = record(ClipFactor(limit), (norm,)) if every else None
            others = [*others, norm]
            del every
        results = self._recorded(known, scale)
        known.clear()
        del scale
        set_all(results, others)
        return None if norm is None else Tensor._from_node(norm)

    def _recorded(
        self, known: dict[int, GraphNode], scale: GraphNode | None
    ) -> list[tuple[GraphNode, Sequence[CellTensor]]]:
        """The update of each bundle, with what it sets, and the count's."""
        count = record(_next, (self._count._node,))
        results: list[tuple[GraphNode, Sequence[CellTensor]]] = [(count, [self._count])]
        scalars = [self._rate._node, count] if scale is None else [self._rate._node, count, scale]
        for bundle in self._bundles:
            gradients = [known.get(int(var._variable.id)) for var in bundle.vars]
            present = tuple([gradient is not None for gradient in gradients])
            if any(present):
                given = [gradient for gradient in gradients if gradient is not None]
                own = self._group_params
                numbers = (own.ratios[bundle.group], *self._numbers(own.group(bundle.group)))
                update = bundle.update(present, scale is not None, self.record_type, numbers)
                results.append((record(update, (*bundle.inputs(given), *scalars)), bundle.cells()))
        return results

    def _refuse_after_tracing(self, what: str) -> None:
        if self._traced:
            raise TrainingError.StateError(
                reason=f"{what} would be unknown to a step that was compiled before; takes another optimizer, "
                "which load_state gives this one's state"
            )

    # --- state --------------------------------------------------------------------------------

    def cells(self) -> list[Var]:
        """The variables it keeps its state in; with those it changes they are all that a step sets."""
        return [self._count, self._rate, *(flat for bundle in self._bundles for flat in bundle.moments.values())]

    def state(self) -> dict[str, Tensor]:
        """Copies of all it knows, by name: "step", "learning_rate", and "3.m" for moment m of variable 3.

        Variables count from 0, in the order of ``vars()``; moments have their shapes. What a group has of its own is
        not in it: build the optimizer the same way, then ``load_state``.
        """
        return read(self._count, self._rate, self._bundles)

    def load_state(self, state: Mapping[str, TensorBase]) -> None:
        """Go on from a state: further steps give the same bits as if there had been no break.

        Raises ``TrainingError.StateError``, which lists what is missing, unknown or of another shape or dtype, and
        then changes nothing.
        """
        write(checked(self._name(), state, self.state()), self._count, self._rate, self._bundles)

    def save(self, path: str | PathLike[str]) -> None:
        """``state()`` as a safetensors file, written whole or not at all. Raises ``CheckpointError.SaveFailed``."""
        from ... import safetensors

        safetensors.save(self.state(), path, {"optimizer": self._name()})

    def load(self, path: str | PathLike[str]) -> None:
        """``load_state`` of a file that ``save`` wrote. Raises as that and ``safetensors.load``."""
        from ... import safetensors

        if not isinstance(path, (str, PathLike)):
            raise ArgumentTypeError(f"load: got {described(path)}; takes a path")
        self.load_state(safetensors.load(path, self._count.device))
