"""AdamW as v1 has it: by names, by variables, or by a loss. metal-candle: ``metal_candle::training::AdamW``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike

from .. import nn, safetensors
from ..constructors import Default, New
from ..error import TrainingError
from ..error.expect import NUMBER, PATH, TEXT, Kind, a, optional
from ..error.takes import takes
from ..error.text import described, shown
from ..graph.node import current_trace, topological_order
from ..graph.operation import to_numpy
from ..graph.operations.counts import number
from ..nn.optim import ParamsAdamW, clip_factor, global_norm
from ..nn.optim.param_group import listed_vars
from ..nn.optim.params import AT_LEAST_0, BELOW_1, MORE_THAN_0, Range
from ..nn.optim.state import checked
from ..scalar import hold_python_numbers
from ..tensor.base import TensorBase
from ..tensor.eager import CellTensor, Tensor
from ..tensor.grad_store import backward
from ..tensor.var import Var

MOMENTS = ("m", "v")
TENSOR = a(TensorBase, "a tensor")
GRADIENTS = Kind(
    "a dict from Var to gradient",
    lambda grads: (
        isinstance(grads, Mapping)
        and all(isinstance(var, Var) and isinstance(grad, TensorBase) for var, grad in grads.items())
    ),
)
_RANGES: dict[str, Range] = {
    "learning_rate": MORE_THAN_0,
    "beta1": BELOW_1,
    "beta2": BELOW_1,
    "epsilon": MORE_THAN_0,
    "weight_decay": AT_LEAST_0,
}


@dataclass(frozen=True)
class AdamWConfig(Default):
    """The numbers of ``AdamW``, with metal-candle's names and defaults; ``nn.ParamsAdamW`` has candle's."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        hold_python_numbers(self)

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidConfig`` for numbers outside their ranges."""
        for name, (range_, holds) in _RANGES.items():
            value = getattr(self, name)
            if not holds(number("AdamWConfig", name, value)):
                raise TrainingError.InvalidConfig(reason=f"AdamWConfig: {name} is {described(value)}; takes {range_}")

    def to_params(self) -> ParamsAdamW:
        """The same as ``nn.AdamW`` takes it."""
        return ParamsAdamW(self.learning_rate, self.beta1, self.beta2, self.epsilon, self.weight_decay)


class AdamW(New):
    """``p - lr · (m / (1 - b1ᵗ)) / (sqrt(v / (1 - b2ᵗ)) + eps) - lr · wd · p``: ``nn.AdamW``, parameter by parameter.

    Each parameter has its own t: how often it was stepped. Those that are stepped together, by ``backward_step`` or
    ``step_vars``, are computed together, and count the calls in which one of them had a gradient. The moments are in
    F32. ``vars``, by default none, are the variables that ``backward_step`` changes; without them it changes every
    variable that has a gradient. Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    """

    @takes(config=optional(a(AdamWConfig)))
    def __init__(self, config: AdamWConfig | None = None, vars: Iterable[Var] | None = None) -> None:
        self._config = config or AdamWConfig()
        self._config.validate()
        self._rate = self._config.learning_rate
        self._named: dict[str, nn.AdamW] = {}
        self._vars: list[Var] = []
        self._group_of: dict[int, nn.AdamW] = {}
        self._fixed = vars is not None
        if vars is not None:
            self._register([var for var in listed_vars("AdamW", vars) if var.dtype.is_float()])

    def __repr__(self) -> str:
        return f"AdamW({len(self._vars)} vars, {len(self._named)} named parameters, {self.config()!r})"

    # --- numbers ------------------------------------------------------------------------------

    def config(self) -> AdamWConfig:
        """The numbers, with the learning rate in force."""
        return replace(self._config, learning_rate=self._rate)

    def learning_rate(self) -> float:
        """The rate in force."""
        return self._rate

    def set_lr(self, lr: float) -> None:
        """Use another rate from the next step on, 0 or more. Raises ``TrainingError.InvalidConfig``."""
        replace(self._config.to_params(), lr=lr).validate()
        self._rate = lr
        for group in self._groups():
            group.set_learning_rate(lr)

    def step_count(self) -> int:
        """How many updates there were: of the parameter that had the most."""
        return max((group.step_count() for group in self._groups()), default=0)

    def vars(self) -> list[Var]:
        """The variables it knows: those it was given, then in the order of their first step."""
        return list(self._vars)

    # --- steps --------------------------------------------------------------------------------

    @takes(name=TEXT, tensor=TENSOR)
    def add_parameter(self, name: str, tensor: TensorBase) -> None:
        """Make a parameter known by name, with moments of zero. Raises ``TrainingError.StateError`` for a known one."""
        if name in self._named:
            raise TrainingError.StateError(reason=f"add_parameter: {shown(name)} is known already; takes a new name")
        self._named[name] = self._group([Var.from_tensor(Tensor.from_mlx(tensor.mlx(), tensor.device))])

    @takes(name=TEXT, param=TENSOR, grad=TENSOR)
    def step(self, name: str, param: TensorBase, grad: TensorBase) -> Tensor:
        """The new value of a parameter, as a new tensor. Raises ``TrainingError.StateError`` for an unknown name."""
        if name not in self._named:
            known = f"knows {', '.join(map(shown, self._named))}" if self._named else "knows none"
            raise TrainingError.StateError(reason=f"step: no parameter {shown(name)}; {known}, add_parameter adds one")
        group = self._named[name]
        (var,) = group.vars()
        var.set(param)
        group.step({var: Tensor._from_node(grad._node)})
        return Tensor.from_mlx(var.mlx(), var.device)

    @takes(var=a(Var), grad=TENSOR)
    def step_var(self, var: Var, grad: TensorBase) -> None:
        """One update of a variable, which is known from then on."""
        if var.id() not in self._group_of:
            self._register([var])
        elif len(self._group_of[var.id()].vars()) > 1:
            self._take_apart(self._group_of[var.id()])
        self._group_of[var.id()].step({var: Tensor._from_node(grad._node)})

    @takes(grads=GRADIENTS, max_norm=optional(NUMBER))
    def step_vars(self, grads: Mapping[Var, Tensor], max_norm: float | None = None) -> Tensor | None:
        """One update of every variable of ``grads``, all together; those it does not know are known from then on.

        ``max_norm`` scales the gradients so that the norm of all of them is at most that; the norm before is returned.
        """
        new = [var for var in grads if var.id() not in self._group_of]
        if new:
            self._register(new)
        groups = list(dict.fromkeys(self._group_of[var.id()] for var in grads))
        if len(groups) == 1:
            return groups[0].step(dict(grads), max_norm=max_norm)
        norm = global_norm(list(grads.values())) if max_norm is not None and grads else None
        factor = None if norm is None or max_norm is None else clip_factor(norm, max_norm)
        for group in groups:
            group.step({var: grads[var] for var in grads if self._group_of[var.id()] is group}, factor)
        return norm

    @takes(loss=a(TensorBase, "a loss"), max_norm=optional(NUMBER))
    def backward_step(self, loss: TensorBase, max_norm: float | None = None) -> Tensor | None:
        """Gradients of ``loss``, and one update by them of the variables: its own, or all that have a gradient.

        ``max_norm`` clips as in ``step_vars``. candle: ``Optimizer::backward_step``.
        """
        groups = self._groups_of_vars()
        if self._fixed and len(groups) == 1:
            return groups[0].backward_step(loss, max_norm)
        known = None if self._fixed else variables_of(loss)
        grads = backward(loss, Tensor._from_node)
        wanted = self._vars if known is None else known
        return self.step_vars({var: grads[var] for var in wanted if var in grads}, max_norm)

    # --- state --------------------------------------------------------------------------------

    @takes(parameter=Kind("a name or a Var", lambda parameter: isinstance(parameter, (str, Var))))
    def moments(self, parameter: str | Var) -> tuple[Tensor, Tensor]:
        """Copies of a parameter's m and v, in its shape, by its name or variable.

        Raises ``TrainingError.StateError`` for one that is not known.
        """
        known = self._named if isinstance(parameter, str) else self._group_of
        key = parameter if isinstance(parameter, str) else parameter.id()
        if key not in known:
            what = shown(parameter) if isinstance(parameter, str) else repr(parameter)
            raise TrainingError.StateError(reason=f"moments: no parameter {what}; takes one that was added or stepped")
        group = known[key]  # type: ignore[index]
        place = 0 if isinstance(parameter, str) else _place(group, parameter)
        state = group.state()
        return state[f"{place}.m"], state[f"{place}.v"]

    def reset_state(self) -> None:
        """All moments and counts to zero; parameters and learning rate stay."""
        for group in self._groups():
            state = group.state()
            group.load_state({name: t if name == "learning_rate" else t.zeros_like() for name, t in state.items()})

    def state(self) -> dict[str, Tensor]:
        """Copies of all it knows, by name: "learning_rate", and count and moments of each parameter.

        "var.3.step", "var.3.m", "var.3.v" are those of variable 3 of ``vars()``; "param.w.step" … of the named ones.
        """
        found = {"learning_rate": Tensor.new(self._rate, dtype="f64", device="cpu")}
        states = {group: group.state() for group in self._groups()}
        for prefix, group, place in self._places():
            state = states[group]
            found[f"{prefix}.step"] = state["step"]
            found.update({f"{prefix}.{moment}": state[f"{place}.{moment}"] for moment in MOMENTS})
        return found

    def load_state(self, state: Mapping[str, TensorBase]) -> None:
        """Go on from a state: further steps give the same bits as if there had been no break.

        The optimizer must know the same parameters: give it the same ``vars``, add the same names. Raises
        ``TrainingError.StateError``, which lists what is missing, unknown or of another shape or dtype, and then
        changes nothing.
        """
        arrays = checked("AdamW", state, self.state())
        rate = float(to_numpy(arrays.pop("learning_rate")))
        values = {name: Tensor.from_mlx(array) for name, array in arrays.items()}
        counts: dict[nn.AdamW, set[float]] = {}
        for prefix, group, _ in self._places():
            counts.setdefault(group, set()).add(float(values[f"{prefix}.step"].to_scalar()))
        for group, different in counts.items():
            if len(different) > 1:
                self._take_apart(group)
        self.set_lr(rate)
        states = {group: group.state() for group in self._groups()}
        for prefix, group, place in self._places():
            states[group]["step"] = values[f"{prefix}.step"]
            states[group].update({f"{place}.{moment}": values[f"{prefix}.{moment}"] for moment in MOMENTS})
        for group, own in states.items():
            group.load_state(own)

    @takes(path=PATH)
    def save(self, path: str | PathLike[str]) -> None:
        """``state()`` as a safetensors file, written whole or not at all. Raises ``CheckpointError.SaveFailed``."""
        safetensors.save(self.state(), path, {"optimizer": "AdamW"})

    @takes(path=PATH)
    def load(self, path: str | PathLike[str]) -> None:
        """``load_state`` of a file that ``save`` wrote. Raises as that and ``safetensors.load``."""
        self.load_state(safetensors.load(path, "cpu"))

    # --- groups -------------------------------------------------------------------------------

    def _group(self, vars: Sequence[Var]) -> nn.AdamW:
        """An optimizer of variables that are stepped together. Raises ``TrainingError.StateError`` for integers."""
        if current_trace() is not None:
            raise TrainingError.StateError(
                reason="AdamW: a compiled step meets a new variable; takes all of them as AdamW(config, vars)"
            )
        for var in vars:
            if not var.dtype.is_float():
                raise TrainingError.StateError(reason=f"AdamW: got a parameter of {var.dtype}; takes a float dtype")
        return nn.AdamW(vars, replace(self._config.to_params(), lr=self._rate))

    def _register(self, vars: Sequence[Var]) -> None:
        group = self._group(vars)
        for var in group.vars():
            if var.id() not in self._group_of:
                self._group_of[var.id()] = group
                self._vars.append(var)

    def _take_apart(self, group: nn.AdamW) -> None:
        """Give each variable of a group an optimizer, and so a count, of its own."""
        state = group.state() if current_trace() is None else {}
        for place, var in enumerate(group.vars()):
            own = self._group([var])
            values = {f"0.{moment}": state[f"{place}.{moment}"] for moment in MOMENTS}
            own.load_state({"step": state["step"], "learning_rate": own.state()["learning_rate"], **values})
            self._group_of[var.id()] = own

    def _groups_of_vars(self) -> list[nn.AdamW]:
        return list(dict.fromkeys(self._group_of.values()))

    def _groups(self) -> list[nn.AdamW]:
        return [*self._groups_of_vars(), *self._named.values()]

    def _places(self) -> list[tuple[str, nn.AdamW, int]]:
        """Of each parameter its name in a state, its group, and its number there."""
        found = []
        for count, var in enumerate(self._vars):
            group = self._group_of[var.id()]
            found.append((f"var.{count}", group, _place(group, var)))
        return found + [(f"param.{name}", group, 0) for name, group in self._named.items()]


def _place(group: nn.AdamW, var: Var) -> int:
    return next(place for place, each in enumerate(group.vars()) if each.id() == var.id())


def variables_of(tensor: TensorBase) -> list[Var]:
    """The variables that a tensor depends on, each once."""
    found = {node.variable.id: node.variable for node in topological_order([tensor._node]) if node.variable is not None}
    return [Var.from_tensor(CellTensor(variable)) for variable in found.values() if variable.differentiable]


def config_of(config: AdamWConfig | ParamsAdamW) -> AdamWConfig:
    """metal-candle's spelling of either."""
    if isinstance(config, AdamWConfig):
        return config
    return AdamWConfig(config.lr, config.beta1, config.beta2, config.eps, config.weight_decay)
