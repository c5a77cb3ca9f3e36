"""Parameter groups: variables with numbers of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar, Union

from ...constructors import New
from ...error import ArgumentTypeError, ArgumentValueError
from ...error.text import described
from ...tensor.base import TensorBase
from ...tensor.var import Var
from .params import Params

P = TypeVar("P", bound=Params)


class ParamGroup(New):
    """Variables that an optimizer updates with numbers of their own: ``ParamGroup(biases, weight_decay=0.0)``.

    What is not named is the optimizer's. A learning rate keeps its ratio to the optimizer's when that changes.
    """

    def __init__(self, vars: Iterable[Var], **overrides: Any) -> None:
        self.vars, self.overrides = listed_vars("ParamGroup", vars), overrides

    def __repr__(self) -> str:
        named = "".join(f", {name}={value!r}" for name, value in self.overrides.items())
        return f"ParamGroup({len(self.vars)} vars{named})"

    def params(self, base: Params) -> Params:
        """The optimizer's numbers with the group's in their place. Raises for a name that is none of them."""
        names = [field.name for field in fields(base)]
        for name in self.overrides:
            if name not in names:
                raise ArgumentValueError(f"{base.optimizer}: got a group with {name!r}; takes {', '.join(names)}")
        own = replace(base, **self.overrides)
        own.validate()
        return own


Vars = Union[Iterable[Var], Iterable[Union[ParamGroup, Mapping[str, Any]]]]
"""What an optimizer takes: variables, or groups of them."""


def listed_vars(op: str, vars: Any) -> list[Var]:
    """The variables as a list. Raises ``ArgumentTypeError`` for what is no list, or other iterable, of ``Var``s."""
    if isinstance(vars, (Var, str, bytes, Mapping)) or not isinstance(vars, Iterable):
        raise ArgumentTypeError(f"{op}: got {described(vars)}; takes a list of Vars, as VarMap.all_vars() gives")
    found = list(vars)
    for var in found:
        if not isinstance(var, Var):
            got = "a tensor" if isinstance(var, TensorBase) else described(var)
            raise ArgumentTypeError(f"{op}: got {got} in the list of variables; takes Vars, as VarMap.all_vars() gives")
    return found


def grouped(op: str, vars: Any) -> list[ParamGroup]:
    """Groups as they are; plain variables as one group without numbers of its own.

    A group may also be written as PyTorch's users do: ``{"params": [...], "lr": 0.1}``, or with ``"vars"``. Raises
    ``ArgumentTypeError`` for a list of both.
    """
    if isinstance(vars, (Var, str, bytes, Mapping, ParamGroup)) or not isinstance(vars, Iterable):
        raise ArgumentTypeError(f"{op}: got {described(vars)}; takes a list of Vars, or of ParamGroups")
    found = list(vars)
    kinds = {isinstance(each, (ParamGroup, Mapping)) for each in found}
    if len(kinds) > 1:
        raise ArgumentTypeError(f"{op}: got Vars beside ParamGroups in one list; takes Vars, or ParamGroups")
    if kinds != {True}:
        return [ParamGroup(listed_vars(op, found))]
    return [each if isinstance(each, ParamGroup) else _of_dict(op, each) for each in found]


def _of_dict(op: str, group: Mapping[str, Any]) -> ParamGroup:
    rest = dict(group)
    names = [name for name in ("params", "vars") if name in rest]
    if len(names) != 1:
        got = ", ".join(map(str, rest)) or "nothing"
        raise ArgumentValueError(f'{op}: got a group with {got}; takes "params" (or "vars") and numbers')
    return ParamGroup(rest.pop(names[0]), **rest)


class GroupParams(Generic[P]):
    """The numbers of each group: the optimizer's, with the group's own in their place.

    ``ratios`` are the groups' learning rates to the optimizer's: what has to change under a compiled step is one rate.
    """

    def __init__(self, base: P, groups: Sequence[ParamGroup]) -> None:
        self.base = base
        self.overrides = [group.overrides for group in groups]
        self.ratios = [_ratio(base, group.params(base).lr) for group in groups]

    def group(self, index: int, base: P | None = None) -> P:
        """A group's numbers, but for the learning rate, with ``base`` in place of the optimizer's."""
        overrides = {name: value for name, value in self.overrides[index].items() if name != "lr"}
        return replace(self.base if base is None else base, **overrides)

    def plain(self) -> int:
        """The first group without numbers of its own; made if there is none."""
        if {} not in self.overrides:
            self.overrides.append({})
            self.ratios.append(1.0)
        return self.overrides.index({})


def _ratio(base: Params, lr: float) -> float:
    if lr == base.lr:
        return 1.0
    if base.lr == 0:
        raise ArgumentValueError(
            f"{base.optimizer}: got lr {lr} for a group beside lr 0; takes a base rate above 0, which it keeps its "
            "ratio to"
        )
    return lr / base.lr
