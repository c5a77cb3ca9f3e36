"""What MLX would compute for arrays that nobody has evaluated: its primitives, with shapes, on a tape.

``mx.export_function`` tells them, but merges equal ones, which evaluation does not: casts and unpacked weights that are
made again for each use are put back. Facts of MLX 0.32.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

FAR = 100
"""So many primitives later a use of a widened half belongs to the gradient, which widens it again."""

Shape = tuple[int, ...]

# The result is the operand's storage, seen otherwise.
VIEWS = frozenset(
    (
        "Transpose",
        "Broadcast",
        "ExpandDims",
        "Squeeze",
        "Slice",
        "Split",
        "Depends",
        "StopGradient",
        "AsStrided",
        "Copy",
    )
)
# The storage too, if it is in order; else a copy.
RESHAPES = frozenset(("Reshape", "Flatten", "Unflatten", "View", "Contiguous"))
# Computed element by element, into an operand's storage if that is free.
ELEMENTWISE = frozenset(
    """
    Abs Add ArcCos ArcTan2 AsType BitwiseBinary BitwiseInvert Ceil Cos Cosh Divide DivMod Equal Erf ErfInv Exp
    Expm1 Floor Greater GreaterEqual Less LessEqual Log Log1p LogAddExp LogicalAnd LogicalNot LogicalOr Maximum
    Minimum Multiply Negative NotEqual Power Remainder Round Select Sigmoid Sign Sin Sinh Sqrt Rsqrt Square
    Subtract Tan Tanh Softmax RMSNorm LayerNorm Scan
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Primitive:
    """One call of MLX: its operands and results by name."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[mx.Dtype, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Tape:
    """The primitives behind some results, and the shapes of what is there already."""

    primitives: list[Primitive]
    given: dict[str, tuple[Shape, mx.Dtype]]
    results: list[str]


def tape_of(arrays: Sequence[mx.array]) -> Tape:
    """What evaluating these arrays would compute."""
    primitives: list[Primitive] = []
    given: dict[str, tuple[Shape, mx.Dtype]] = {}
    results: list[str] = []

    def take(part: dict[str, Any]) -> None:
        if part["type"] == "primitive":
            names, shapes, dtypes = zip(*part["outputs"])
            for name, shape, dtype in part["inputs"]:
                given.setdefault(name, (tuple(shape), dtype))
            inputs = tuple(name for name, _, _ in part["inputs"])
            arguments = tuple(part["arguments"])
            primitives.append(Primitive(part["name"], inputs, names, tuple(map(tuple, shapes)), dtypes, arguments))
        elif part["type"] == "outputs":
            results.extend(name for name, *_ in part["outputs"])

    mx.export_function(take, lambda: list(arrays))
    for each in primitives:
        for name in each.outputs:
            given.pop(name, None)
    return Tape(_unpacked_again(_casts_made_again(primitives, given), given), given, results)


def _casts_made_again(primitives: Sequence[Primitive], given: Mapping[str, tuple[Shape, mx.Dtype]]) -> list[Primitive]:
    """Widening casts that are used again much later, as two.

    Exporting merges equal primitives. A half that the forward pass widens and the gradient once more would seem to be
    kept in F32 in between.
    """
    sizes = {name: dtype.size for name, (_, dtype) in given.items()}
    uses: dict[str, list[int]] = {}
    for at, each in enumerate(primitives):
        sizes.update((name, dtype.size) for name, dtype in zip(each.outputs, each.dtypes))
        for name in each.inputs:
            uses.setdefault(name, []).append(at)
    renamed: dict[int, dict[str, str]] = {}
    before: dict[int, list[Primitive]] = {}
    for each in primitives:
        if each.name != "AsType" or sizes[each.inputs[0]] >= each.dtypes[0].size:
            continue
        (name,) = each.outputs
        users, now = uses.get(name, []), name
        for earlier, user in itertools.pairwise(users):
            if user - earlier > FAR:
                now = f"{name}@{user}"
                before.setdefault(user, []).append(replace(each, outputs=(now,)))
            if now != name:
                renamed.setdefault(user, {})[name] = now
    found: list[Primitive] = []
    for at, each in enumerate(primitives):
        found += before.get(at, ())
        names = renamed.get(at)
        found.append(replace(each, inputs=tuple(names.get(name, name) for name in each.inputs)) if names else each)
    return found


def _unpacked_again(primitives: list[Primitive], given: Mapping[str, tuple[Shape, mx.Dtype]]) -> list[Primitive]:
    """Quantised weights that are unpacked at each use, as MLX does, where exporting has merged it."""
    # What is made of given arrays alone, without a product or a row picked; of "bits" codes were taken apart.
    simple = VIEWS | RESHAPES | ELEMENTWISE | {"Concatenate"}
    maker: dict[str, Primitive] = {}
    bits: set[str] = set()
    # A block that is computed again waits for its gradient: it sees the same arrays through ``Depends``.
    there = set(given)
    for each in primitives:
        if each.name == "Depends":
            there.update(out for out, source in zip(each.outputs, each.inputs) if source in there)
        elif each.name in simple and all(name in there or name in maker for name in each.inputs):
            maker.update(dict.fromkeys(each.outputs, each))
            if each.name == "BitwiseBinary" or any(name in bits for name in each.inputs):
                bits.update(each.outputs)
    if not bits:
        return primitives
    found: list[Primitive] = []
    taken: set[str] = set()
    for at, each in enumerate(primitives):
        if each.outputs[0] in bits:
            continue  # it comes with its use
        renamed: dict[str, str] = {}
        for root in each.inputs:
            if root in bits:
                found += _copies(root, maker, bits, taken, f"@{at}", renamed)
        taken.update(renamed)
        names = tuple(renamed.get(name, name) for name in each.inputs)
        found.append(replace(each, inputs=names) if renamed else each)
    return found


def _copies(
    root: str, maker: Mapping[str, Primitive], bits: set[str], taken: set[str], suffix: str, renamed: dict[str, str]
) -> list[Primitive]:
    """What makes ``root``, under names of its own where others have the first ones; ``renamed`` gets all of them."""
    made: list[Primitive] = []
    stack = [(root, False)]
    while stack:
        name, ready = stack.pop()
        if name in renamed:
            continue
        each = maker[name]
        if not ready:
            stack.append((name, True))
            stack += [(source, False) for source in each.inputs if source in bits]
            continue
        renamed.update({out: out + suffix if out in taken else out for out in each.outputs})
        inputs = tuple(renamed.get(source, source) for source in each.inputs)
        made.append(replace(each, inputs=inputs, outputs=tuple(renamed[out] for out in each.outputs)))
    return made
