"""``compile``: run a function once per shape on placeholders, then replay the recorded plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import mlx.core as mx

from .. import settings
from ..device import Device
from ..error import Error
from ..graph.evaluate import on_device
from ..graph.node import GraphNode, Variable, current_trace, leaf, placeholder, topological_order, tracing
from ..graph.operation import Meta
from ..graph.operations.random import next_key
from ..graph.replay import Replay
from .base import TensorBase
from .eager import CellTensor, Tensor
from .grad_store import COMPILED, GradStore

R = TypeVar("R")


class _Slot:
    """Where a tensor stands in a structure of arguments or results."""

    def __init__(self, index: int, kind: type[TensorBase]) -> None:
        self.index, self.kind = index, kind


def _flatten(value: Any, tensors: list[TensorBase]) -> tuple[Any, Hashable]:
    """``value`` with its tensors replaced by slots, and a key of its structure.

    A variable stays what it is: like one from outside the function it is read at each call, can be set, and
    has gradients.
    """
    if isinstance(value, GradStore):
        raise Error("compile: got a GradStore among the arguments or results; takes its gradients: grads[var]")
    if isinstance(value, CellTensor):
        return value, ("variable", value._variable)
    if isinstance(value, TensorBase):
        kind = Tensor if isinstance(value, Tensor) else type(value)
        tensors.append(value)
        return _Slot(len(tensors) - 1, kind), (kind, tuple(value.shape), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        parts = [_flatten(item, tensors) for item in value]
        items = [part[0] for part in parts]
        if isinstance(value, tuple):
            skeleton = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
            return skeleton, ("tuple", tuple(part[1] for part in parts))
        return items, ("list", tuple(part[1] for part in parts))
    if isinstance(value, dict):
        parts = [_flatten(item, tensors) for item in value.values()]
        return dict(zip(value, (part[0] for part in parts))), ("dict", tuple(value), tuple(part[1] for part in parts))
    try:
        hash(value)
    except TypeError:
        raise Error(
            f"compile: got a {type(value).__name__} among the arguments or results; "
            "takes tensors, hashable values and lists, tuples, dicts of them"
        ) from None
    return value, (type(value), value)


def _fill(skeleton: Any, make: Callable[[_Slot], Any]) -> Any:
    """``skeleton`` with every slot replaced."""
    if isinstance(skeleton, _Slot):
        return make(skeleton)
    if isinstance(skeleton, tuple):
        items = [_fill(item, make) for item in skeleton]
        return type(skeleton)(*items) if hasattr(skeleton, "_fields") else tuple(items)
    if isinstance(skeleton, list):
        return [_fill(item, make) for item in skeleton]
    if isinstance(skeleton, dict):
        return {name: _fill(item, make) for name, item in skeleton.items()}
    return skeleton


@dataclass
class _Program:
    """A traced function: what it reads, what it gives, what it sets."""

    run: Callable[[list[Any]], list[Any]]
    reads: list[Variable]
    writes: list[Variable]
    keys: int
    results: Any
    tracked: list[bool]
    result_kinds: list[type[TensorBase]]
    device: Device
    nodes: int
    arguments: list[str]


class Compiled(Generic[R]):
    """A function that replays. ``traces`` counts how often it was traced, once per structure and shapes."""

    def __init__(self, function: Callable[..., R]) -> None:
        if not callable(function):
            raise Error(f"compile: got {type(function).__name__}; takes a function")
        functools.update_wrapper(self, function)
        self._function = function
        self._programs: dict[Hashable, _Program] = {}

    @property
    def traces(self) -> int:
        """How many plans there are."""
        return len(self._programs)

    def explain(self) -> str:
        """A line per plan: its arguments, its nodes, the variables it reads and sets."""
        return "\n".join(
            f"plan {i}: {p.nodes} nodes, reads {len(p.reads)} and sets {len(p.writes)} variables, "
            f"{'mx.compile' if not p.device.is_cpu() else 'replay without mx.compile (CPU)'}; "
            f"arguments {', '.join(p.arguments) or 'none'}"
            for i, p in enumerate(self._programs.values())
        )

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: bound to its object, which is an argument like any other."""
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if current_trace() is not None:  # inside another compiled function: part of its trace
            return self._function(*args, **kwargs)
        tensors: list[TensorBase] = []
        skeleton, key = _flatten((args, kwargs), tensors)
        program = self._programs.get(key)
        if program is None:
            program = self._trace(skeleton, tensors)
            self._programs[key] = program
            if "compile" in settings.DEBUG.words:
                name = getattr(self, "__name__", "function")
                settings.log("compile", "traced %s: %s", name, self.explain().splitlines()[-1])
        values: list[Any] = [tensor.mlx() for tensor in tensors]
        values += [next_key() for _ in range(program.keys)]
        values += [variable.node.value for variable in program.reads]
        with on_device(program.device):
            outputs = program.run(values)
            mx.eval(outputs)
        count = len(program.result_kinds)
        for variable, value in zip(program.writes, outputs[count:]):
            variable.assign(value)

        def wrap(slot: _Slot) -> Any:
            node = leaf(outputs[slot.index], program.device)
            if program.tracked[slot.index]:
                node.cut = COMPILED
            return slot.kind._from_node(node)  # type: ignore[attr-defined]

        result: R = _fill(program.results, wrap)
        return result

    def _trace(self, skeleton: Any, tensors: list[TensorBase]) -> _Program:
        arguments = [placeholder(Meta(tensor.shape, tensor.dtype), tensor.device) for tensor in tensors]

        def stand_in(slot: _Slot) -> Any:
            return slot.kind._from_node(arguments[slot.index])  # type: ignore[attr-defined]

        with tracing() as trace:
            args, kwargs = _fill(skeleton, stand_in)
            returned = self._function(*args, **kwargs)
            results: list[TensorBase] = []
            result_skeleton, _ = _flatten(returned, results)
            result_nodes = [tensor._node for tensor in results]
            written = trace.written
        outputs = result_nodes + list(written.values())
        device = outputs[0].device if outputs else Device.default()
        reads: dict[Variable, GraphNode] = {}
        for node in topological_order(outputs):
            # A leaf that is not the variable's own any more was recorded earlier, and keeps the value of its time.
            if node.variable is not None and node.variable.node is node:
                reads[node.variable] = node
        inputs = [*arguments, *trace.keys, *reads.values()]
        plan = Replay(outputs, inputs)
        run: Callable[[list[Any]], list[Any]] = plan.run
        if not device.is_cpu():
            # On the CPU mx.compile costs seconds of C++ compiler per shape and the step is no faster (measured).
            run = mx.compile(plan.run)
        return _Program(
            run,
            list(reads),
            list(written),
            len(trace.keys),
            result_skeleton,
            [node.tracked for node in result_nodes],
            [type(tensor) for tensor in results],
            device,
            plan.size,
            [f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors],
        )


def compile(function: Callable[..., R]) -> Compiled[R]:
    """A function of tensors that is traced once per structure and shapes, and then replayed as one evaluation.

    Tensors may stand in nested lists, tuples and dicts; other arguments must be hashable and are part of the
    plan. Variables, arguments among them, are read at each call and set when the plan has run; random numbers
    are drawn anew.
    Inside the function nothing can be evaluated, and only variables and what it made itself can be changed in place.
    Results are new tensors without operations: gradients are taken inside. Also usable as a decorator.
    """
    return Compiled(function)
