"""A node of the graph, and the variables whose values leaves are."""

from __future__ import annotations

import itertools
import operator
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Union
from weakref import WeakKeyDictionary

import mlx.core as mx

from ..device import Device
from ..dtype import DType
from ..error import DeviceMismatchBinaryOpError, Error, UnsupportedDTypeForOpError
from ..layout import Layout
from ..shape import Shape
from .node_data import NodeData
from .operation import Arrays, Meta, Metas, Operation

_ids = itertools.count()
by_id = operator.attrgetter("id")
_meta = operator.attrgetter("meta")
_CPU = Device.Cpu


NodeNumber = Union[int, Fraction]


def next_id() -> int:
    """A number that every node recorded so far is below, and none recorded later."""
    return next(_ids)


class TensorId(int):
    """What names a tensor while its operations change: a variable's cell, or one node. candle: ``TensorId``."""


class GraphNode:
    """One recorded operation: what it is, its inputs, shape and dtype, and once computed its value.

    What it means never changes. ``value`` comes once; ``inputs`` go then if no gradient needs them; and before a
    gradient is taken, rewriting may give the same result by another operation. There is no global graph: a graph is
    what is reachable from a node.
    """

    __slots__ = (
        "__weakref__",
        "cut",
        "device",
        "id",
        "inputs",
        "layout",
        "meta",
        "operation",
        "scope",
        "tracked",
        "value",
        "variable",
    )

    def __init__(
        self,
        operation: Operation,
        inputs: tuple[GraphNode, ...],
        meta: Metas,
        device: Device,
        tracked: bool = False,
        value: Arrays | None = None,
        variable: Variable | None = None,
    ) -> None:
        self.operation = operation
        self.inputs = inputs
        self.meta = meta
        self.device = device
        # Whether a variable is among the ancestors, so that a gradient can pass through here.
        self.tracked = tracked
        self.value = value
        self.variable = variable
        # Where its elements lie in candle's view of storage, once somebody asked; see ``layout_of``.
        self.layout: Layout | None = None
        # Where a gradient would have ended, if the inputs that showed it have been let go.
        self.cut: str | None = None
        # The module whose ``forward`` recorded it, as a path; "" outside of modules.
        self.scope = _state.scope
        # Inputs exist before what uses them: the order of the ids is a topological order. What rewriting puts between
        # two nodes has a fraction between theirs.
        self.id: NodeNumber = next(_ids)

    @property
    def shape(self) -> Shape:
        """Shape of the value."""
        return self.meta[0]  # type: ignore[return-value]

    @property
    def dtype(self) -> DType:
        """Dtype of the value."""
        return self.meta[1]  # type: ignore[return-value]

    @property
    def output_shape(self) -> Shape:
        """Shape of the value, under metal-candle's name."""
        return self.shape

    @property
    def output_dtype(self) -> DType:
        """Dtype of the value, under metal-candle's name."""
        return self.dtype

    def is_available(self) -> bool:
        """Whether the value has been computed."""
        return self.value is not None

    def let_go(self) -> None:
        """Forget the inputs of a node that has its value and that no gradient needs."""
        if self.operation.is_view:
            layout_of(self)
        for source in self.inputs:
            self.cut = self.cut or (self.label() if source.tracked else source.cut)
        self.inputs = ()

    @property
    def data(self) -> NodeData:
        """Whether there is a value, and the value, as a tensor."""
        if self.value is None:
            return NodeData.Lazy
        tensor = NodeData.tensor_of(self)
        return NodeData.Concrete(tensor) if self.operation.arity == 0 else NodeData.Available(tensor)

    def label(self) -> str:
        """The operation with the result's shape: "matmul [2, 3]"."""
        what = list(self.shape) if isinstance(self.meta, Meta) else f"of {len(self.meta)} results"
        return f"{self.operation.name()} {what}"

    def __repr__(self) -> str:
        dtype = f", {self.dtype}" if isinstance(self.meta, Meta) else ""
        return f"GraphNode({self.label()}{dtype}, {'available' if self.value is not None else 'lazy'})"


class Variable:
    """A cell whose value changes: what every ``Var``, and each tensor taken from one, shares.

    ``node`` is the leaf that recordings use; setting a value makes a new leaf, so that what was recorded
    before keeps reading the value of its time.
    """

    __slots__ = ("__weakref__", "_node", "differentiable", "id")

    def __init__(self, value: mx.array, device: Device, differentiable: bool = True) -> None:
        self.differentiable = differentiable
        meta = Meta(Shape(value.shape), DType.of(value.dtype))
        self._node = GraphNode(Operation.Input, (), meta, device)
        trace = current_trace()
        if trace is not None:
            trace.made.add(self)
        self.id = self._node.id
        self.assign(value)

    @property
    def node(self) -> GraphNode:
        """The leaf, or while tracing what the traced function has set."""
        return self._node

    def assign(self, value: mx.array) -> None:
        """Take a computed value."""
        old = self._node
        self._replace(GraphNode(Operation.Input, (), old.meta, old.device, self._tracked(), value=value, variable=self))

    def assign_node(self, node: GraphNode) -> None:
        """Take a recorded value, as a function that is being traced does; elsewhere it is computed when it is read."""
        self._replace(GraphNode(Operation.Detach, (node,), node.meta, node.device, self._tracked(), variable=self))

    def _tracked(self) -> bool:
        return self.differentiable and self._node.meta[1].is_float_  # type: ignore[union-attr]

    def _replace(self, node: GraphNode) -> None:
        trace = current_trace()
        if trace is not None and self not in trace.made:
            trace.remember(self, self._node)
        self._node = node

    def restore(self, node: GraphNode) -> None:
        """Put a leaf back, after a trace."""
        self._node = node


class Trace:
    """What one run of a traced function, called ``name``, read and wrote; ``by`` says in errors who traces it."""

    def __init__(self, name: str, by: str = "compile") -> None:
        self.name, self.by = name, by
        self.before: dict[Variable, GraphNode] = {}
        # Variables of its own: they begin anew at each call, and nothing of them outlasts it.
        self.made: set[Variable] = set()
        self.keys: list[GraphNode] = []
        # Modules that were asked whether they are in training mode: another mode is another plan.
        self.asked: dict[int, weakref.ref[object]] = {}
        # How often each rule rewrote what a gradient was taken of.
        self.rules: Counter[str] = Counter()

    def remember(self, variable: Variable, node: GraphNode) -> None:
        """Keep the leaf a variable had when the trace began."""
        self.before.setdefault(variable, node)

    @property
    def written(self) -> dict[Variable, GraphNode]:
        """The variables that were set, with the node each has now."""
        return {variable: variable.node for variable in self.before}


_threads: set[int] = set()


class _State(threading.local):
    trace: Trace | None = None
    scope: str = ""

    def __init__(self) -> None:  # runs in each thread when it asks for the first time
        _threads.add(threading.get_ident())


_state = _State()


def current_trace() -> Trace | None:
    """The trace that is running in this thread, if any: nothing may be evaluated meanwhile."""
    return _state.trace


def one_thread() -> bool:
    """Whether all tensors so far were computed and read in one thread."""
    return len(_threads) <= 1


def helps() -> None:
    """Leave the calling thread out of ``one_thread``: one that only ever computes while another waits for it."""
    current_trace()  # the thread is known from here on, and not noted again
    _threads.discard(threading.get_ident())


@contextmanager
def tracing(name: str) -> Iterator[Trace]:
    """Record what the function ``name`` does; after the block every variable has its former value again."""
    if _state.trace is not None:
        raise Error("compile: a traced function called another compiled function's tracing; call it directly")
    _state.trace = trace = Trace(name)
    try:
        yield trace
    finally:
        _state.trace = None
        for variable, node in trace.before.items():
            variable.restore(node)


@contextmanager
def tracing_part(name: str, by: str) -> Iterator[Trace]:
    """As ``tracing``, also inside a traced function: what the part asks of modules and makes is then that one's too."""
    outer = _state.trace
    _state.trace = trace = Trace(name, by)
    try:
        yield trace
    finally:
        _state.trace = outer
        for variable, node in trace.before.items():
            variable.restore(node)
        if outer is not None:
            outer.asked.update(trace.asked)
            outer.made |= trace.made


def layout_of(node: GraphNode) -> Layout:
    """Where a node's elements lie in the storage of the node it is a view of; row-major if it is none."""
    chain = []
    while node.layout is None and node.operation.is_view and node.inputs:
        chain.append(node)
        node = node.inputs[0]
    layout = node.layout or Layout.contiguous(node.shape)
    for view in reversed(chain):
        layout = view.layout = view.operation.relayout(layout) or Layout.contiguous(view.shape)
    return layout


def leaf(value: mx.array, device: Device) -> GraphNode:
    """A leaf that holds a value."""
    if not value.size:
        # MLX 0.32 keeps an empty array that it copied from NumPy in such a way that summing it reads memory behind it.
        value = mx.zeros(value.shape, value.dtype, stream=mx.cpu)
    mx.eval(value)  # MLX is lazy too, and only the thread that recorded an array can compute it
    return GraphNode(Operation.Input, (), Meta(Shape(value.shape), DType.of(value.dtype)), device, value=value)


# The function in whose trace a placeholder was made; asked for when somebody looks at it afterwards.
_traced: WeakKeyDictionary[GraphNode, Trace] = WeakKeyDictionary()


def placeholder(meta: Meta, device: Device, tracked: bool = False) -> GraphNode:
    """A leaf whose value is given when a plan runs."""
    node = GraphNode(Operation.Input, (), meta, device, tracked)
    trace = current_trace()
    if trace is not None:
        _traced[node] = trace
    return node


def why_no_value(node: GraphNode) -> str:
    """Why a leaf has no value, in words."""
    trace = _traced.get(node)
    if trace is None:
        return f"{node} is an input of a plan; it has a value while the plan runs"
    return f"a tensor that was made while {trace.by} traced {trace.name} has no value; takes what {trace.name} returns"


def is_own_leaf(node: GraphNode) -> bool:
    """Whether it is the leaf of a variable that nobody has set since."""
    return node.variable is not None and node.variable.node is node


def record(
    operation: Operation, inputs: tuple[GraphNode, ...], device: Device | None = None, meta: Metas | None = None
) -> GraphNode:
    """A new node. Raises what the operation's ``infer`` raises, where devices differ, and for F64 off the CPU.

    ``device`` is where it is computed, for what moves a tensor; otherwise where the inputs are. ``meta`` is what
    ``infer`` gives, where the caller knows it.
    """
    if meta is None:
        meta = operation.infer(*map(_meta, inputs))
    where = device or inputs[0].device
    tracked = False
    for node in inputs:
        if node.tracked:
            tracked = True
        if node.device is not where and device is None and node.device != where:
            raise DeviceMismatchBinaryOpError(operation.name(), where, node.device)
    if where is not _CPU and not where.is_cpu() and meta[1] is DType.F64:
        raise UnsupportedDTypeForOpError(operation.name(), DType.F64, f"f64 on Device.Cpu only, got {where}")
    if tracked and not (operation.passes_gradient() and _takes_gradient(meta)):
        tracked = False
    return GraphNode(operation, inputs, meta, where, tracked)


def _takes_gradient(meta: Metas) -> bool:
    """Whether a result can have a gradient: integers end it, as in candle."""
    return meta.dtype.is_float_ if isinstance(meta, Meta) else any(part.dtype.is_float_ for part in meta)


def topological_order(outputs: Sequence[GraphNode], stop: Callable[[GraphNode], bool] | None = None) -> list[GraphNode]:
    """Every node that ``outputs`` depend on, dependencies first, each once; without recursion.

    Nodes for which ``stop`` holds are listed, but not looked behind.
    """
    seen = set(outputs)
    stack = list(seen)
    while stack:
        node = stack.pop()
        if stop is not None and stop(node):
            continue
        for source in node.inputs:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return sorted(seen, key=by_id)


def unevaluated_order(outputs: Sequence[GraphNode], given: Collection[GraphNode] = ()) -> list[GraphNode]:
    """``topological_order`` as evaluating needs it: what is behind a value, or behind a ``given`` node, is left out."""
    seen = set(outputs)
    stack = list(seen)
    while stack:
        node = stack.pop()
        if node.value is None and node not in given:
            for source in node.inputs:
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
    return sorted(seen, key=by_id)
