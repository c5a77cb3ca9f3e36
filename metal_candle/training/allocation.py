"""The memory MLX's CPU back-end takes to evaluate a tape: its own order and rules, gone through without computing.

MLX evaluates primitives in a breadth-first order of limited width from the results back, reversed; an element-wise
primitive writes into an operand that nobody else refers to, a reader that has not run yet included; views allocate
nothing. The thread that begins primitives runs ahead of the one that computes them, and memory is given back only by
the latter: what is freed counts as in use for a while. These are facts of MLX 0.32's ``eval``; what is planned is
compared with what MLX measures in the tests and the benchmark.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .tape import ELEMENTWISE, RESHAPES, VIEWS, Primitive, Shape, Tape

WIDTH = 20
"""How many arrays wide MLX's order is (``MLX_BFS_MAX_WIDTH``)."""
AHEAD = 105
"""How many steps MLX begins before the first of them is done: ten tasks of ten, and the one it is at. Giving back the
operands is a step, and so is each thing that is computed; a view is one step."""


def in_order(tape: Tape) -> list[Primitive]:
    """The primitives in the order in which MLX evaluates them."""
    maker = {name: each for each in tape.primitives for name in each.outputs}
    degree: dict[int, int] = {}
    reached = set()
    stack = [name for name in tape.results if name in maker]
    for name in stack:
        degree[id(maker[name])] = degree.get(id(maker[name]), 0) + 1
    while stack:
        each = maker[stack.pop()]
        if id(each) in reached:
            continue
        reached.add(id(each))
        for source in each.inputs:
            if source in maker:
                degree[id(maker[source])] = degree.get(id(maker[source]), 0) + 1
                stack.append(source)
    # The last thing evaluated is what waits for the results.
    found: list[Sequence[str]] = [tape.results]
    order: list[Primitive] = []
    waiting: list[tuple[Sequence[str], int]] = []
    at = 0
    while at < len(found) or waiting:
        if at < len(found):
            inputs, start = found[at], 0
            at += 1
        else:
            inputs, start = waiting.pop()
        for place in range(start, len(inputs)):
            each_or_none = maker.get(inputs[place])
            if each_or_none is None:
                continue
            if len(found) - at >= WIDTH:
                waiting.append((inputs, place))
                break
            key = id(each_or_none)
            degree[key] -= 1
            if degree[key] == 0:
                found.append(each_or_none.inputs)
                order.append(each_or_none)
    order.reverse()
    return order


class _Storage:
    """Bytes that arrays share, with how many uses are still to come."""

    __slots__ = ("bytes", "held", "read", "shape", "uses")

    def __init__(self, size: int, shape: Shape, held: bool = False) -> None:
        self.bytes, self.shape, self.held, self.uses = size, shape, held, 0
        self.read = -AHEAD
        """The step after which it was last read; until that is done, nobody writes into it."""


@dataclass
class _View:
    """An array: its storage, shape and strides in elements."""

    storage: _Storage
    shape: Shape
    strides: Shape
    itemsize: int

    def is_in_order(self) -> bool:
        return all(
            stride == want or size == 1 for size, stride, want in zip(self.shape, self.strides, _rows(self.shape))
        )

    def is_dense(self) -> bool:
        """Whether it fills a storage of its own without gaps, in whatever order of dims."""
        kept = sorted((stride, size) for size, stride in zip(self.shape, self.strides) if size > 1)
        expected = 1
        for stride, size in kept:
            if stride != expected:
                return False
            expected *= size
        return True


def _rows(shape: Shape) -> Shape:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@dataclass(frozen=True)
class Usage:
    """Bytes that are allocated at most, and what is left when all is evaluated; both without what was given.

    ``parts`` are the shapes of what there is at the peak, with the bytes of each; their sum is ``peak``.
    """

    peak: int
    left: int
    parts: dict[Shape, int]


def usage(tape: Tape) -> Usage:
    """The memory of evaluating a tape."""
    order = in_order(tape)
    peak, at, left, _ = _gone_through(tape, order, len(order))
    return Usage(peak, left, _gone_through(tape, order, at + 1)[3])


def _gone_through(tape: Tape, order: Sequence[Primitive], count: int) -> tuple[int, int, int, dict[Shape, int]]:
    """The peak of the first ``count`` primitives, which of them has it, and what is there after the last."""
    views = {
        name: _View(_Storage(0, (), True), shape, _rows(shape), dtype.size)
        for name, (shape, dtype) in tape.given.items()
    }
    uses = Counter([*tape.results, *(name for each in order for name in each.inputs)])
    broadcast = {name for each in order if each.name == "Broadcast" for name in each.outputs}
    now = peak = step = place = 0
    there: Counter[Shape] = Counter()
    freed: deque[tuple[int, Shape, int]] = deque()
    for number, each in enumerate(order[:count]):
        while freed and freed[0][0] <= step - AHEAD:
            _, shape, size = freed.popleft()
            now -= size
            there[shape] -= size
        inputs = [views[name] for name in each.inputs]
        made = _evaluated(each, inputs, uses, step)
        known = {id(view.storage) for view in inputs}
        read = known - {id(view.storage) for view in made}
        new = {id(view.storage): view.storage for view in made if id(view.storage) not in known}
        copied = _copied(each, inputs)
        for shape, size in [(storage.shape, storage.bytes) for storage in new.values()] + copied:
            now += size
            there[shape] += size
        step += _tasks(each, made, inputs, len(copied)) + sum(name in broadcast for name in each.inputs)
        if now > peak:
            peak, place = now, number
        for name, view in zip(each.outputs, made):
            views[name] = view
            view.storage.uses += uses[name]
        for view in inputs:
            view.storage.uses -= 1
            if id(view.storage) in read:
                view.storage.read = step
        freed += [(step, *copy) for copy in copied]
        for storage in {id(view.storage): view.storage for view in (*inputs, *made)}.values():
            if not storage.uses and not storage.held:
                storage.held = True  # given back once
                freed.append((step, storage.shape, storage.bytes))
    return peak, place, now - sum(size for *_, size in freed), dict(+there)


def _evaluated(each: Primitive, inputs: Sequence[_View], uses: Mapping[str, int], step: int) -> list[_View]:
    """What a primitive that begins after ``step`` gives, in which storage."""
    if each.name in VIEWS and inputs:
        return _views(each, inputs)
    sizes = [dtype.size for dtype in each.dtypes]
    shape = each.shapes[0]
    if each.name in RESHAPES and inputs and inputs[0].is_in_order():
        return [_View(inputs[0].storage, shape, _rows(shape), sizes[0])]
    strides = _rows(shape)
    if each.name in ELEMENTWISE:
        whole = [x for x in inputs if x.shape == shape and math.prod(shape) > 1]
        if whole and all(x.strides == whole[0].strides and x.is_dense() for x in whole):
            strides = whole[0].strides
        for name, x in zip(each.inputs, inputs):
            free = x.storage.uses == uses[name] == 1 and not x.storage.held and x.storage.read <= step - AHEAD
            alike = x.shape == shape and x.strides == strides and x.storage.bytes == sizes[0] * math.prod(shape)
            if free and alike and len(sizes) == 1:
                return [_View(x.storage, shape, strides, sizes[0])]
    storages = [_Storage(size * math.prod(each_shape), each_shape) for each_shape, size in zip(each.shapes, sizes)]
    return [
        _View(storage, storage.shape, strides if storage.shape == shape else _rows(storage.shape), size)
        for storage, size in zip(storages, sizes)
    ]


def _views(each: Primitive, inputs: Sequence[_View]) -> list[_View]:
    x = inputs[0]
    if each.name == "Depends":
        return [_View(x.storage, x.shape, x.strides, x.itemsize) for x in inputs[: len(each.outputs)]]
    if each.name == "Transpose":
        axes = each.arguments[0]
        return [_View(x.storage, each.shapes[0], tuple(x.strides[axis] for axis in axes), x.itemsize)]
    if each.name == "Broadcast":
        shape = each.shapes[0]
        before = len(shape) - len(x.shape)
        strides = (0,) * before + tuple(0 if size == 1 else stride for size, stride in zip(x.shape, x.strides))
        return [_View(x.storage, shape, strides, x.itemsize)]
    if each.name == "Slice":
        steps = each.arguments[2]
        strides = tuple(stride * step for stride, step in zip(x.strides, steps))
        return [_View(x.storage, each.shapes[0], strides, x.itemsize)]
    if each.name in ("ExpandDims", "Squeeze"):
        kept: list[int] = []
        known = iter([stride for size, stride in zip(x.shape, x.strides) if size != 1])
        for size in each.shapes[0]:
            kept.append(next(known) if size != 1 else 1)
        return [_View(x.storage, each.shapes[0], tuple(kept), x.itemsize)]
    if each.name == "Split":
        return [_View(x.storage, shape, x.strides, x.itemsize) for shape in each.shapes]
    shape = each.shapes[0]
    return [_View(x.storage, shape, x.strides if shape == x.shape else _rows(shape), x.itemsize)]


def _tasks(each: Primitive, made: Sequence[_View], inputs: Sequence[_View], copies: int) -> int:
    """How many steps a primitive is: what it computes, each copy it makes for that, and giving back its operands."""
    storages = [view.storage for view in inputs]
    if each.name == "Broadcast":
        return 0  # exporting has merged them: in truth each use has one of its own
    if each.name in VIEWS or (each.name in RESHAPES and made[0].storage in storages):
        return 1
    return {"Concatenate": len(inputs), "AddMM": 2 + copies}.get(each.name, 1 + copies) + 1


def _copied(each: Primitive, inputs: Sequence[_View]) -> list[tuple[Shape, int]]:
    """Copies that a primitive makes for itself: of a product's operands whose rows do not follow each other."""
    if each.name not in ("Matmul", "AddMM"):
        return []
    found = []
    for x in inputs[:2]:
        rows, columns = x.strides[-2:]
        straight = columns == 1 and (rows == x.shape[-1] or x.shape[-2] == 1)
        turned = rows == 1 and (columns == x.shape[-2] or x.shape[-1] == 1)
        if not straight and not turned:
            found.append((x.shape, x.itemsize * math.prod(x.shape)))
    return found
