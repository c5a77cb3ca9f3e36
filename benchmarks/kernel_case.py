"""A case that ``kernels.py`` measures: a kernel on some inputs, its rivals, chains of calls, and whether all agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from metal_candle import settings
from metal_candle.kernels import custom
from metal_candle.kernels.kernel import Kernel

import mlx.core as mx
from kernel_rivals import tupled
from measure import Side

Arrays = tuple[mx.array, ...]
Function = Callable[..., Sequence[mx.array]]

OURS = "ours"
CHOSEN = "chosen"
COMPILED = ", compiled"
GRADIENT = "with gradient"
RULE = "rule chooses: "
"""What is written of our side where it is a launch of ours, and then yes or no."""

NAMES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
# How far results may be from the definition's in float32, of the largest: sums in another order and exponentials by
# approximation; two roundings in a half. Of gradients four times as far.
TOLERANCE = {mx.float32: 1e-4, mx.float16: 4e-3, mx.bfloat16: 3e-2}
# On a GPU MLX multiplies float32 as TF32, with 10 bits of mantissa: the definition's products too.
TF32 = 4e-3
# Calls in a row of the shortest kernels, so that launches follow each other as in a model; MLX's own benchmark of its
# norms makes 32. On the CPU there is nothing to launch.
GPU_CALLS, CPU_CALLS = 32, 4
# Seconds that a chain takes at least where it can, and what a call takes at the least, about.
CHAIN, LAUNCH = 1e-3, 5e-6
# Bytes of the distinct inputs of a chain at most: on a GPU many times its caches, so that weights come from memory.
GPU_DISTINCT, CPU_DISTINCT = 2**30, 2**26


@dataclass(frozen=True)
class Case:
    """A kernel on inputs of one size.

    - ``group`` names the benchmark, ``axes`` the sizes by which a rule could choose.
    - ``make()``: new inputs, all arrays; ``arguments(*inputs)`` what the kernel is called with.
    - ``rivals``: MLX's ways, each called with the inputs.
    - ``floor``: the fewest bytes a call must move.
    - ``links``: which input the next call of a chain takes from which result of this one.
    - ``wrt``: of which inputs the gradient is taken; without any only the result is computed.
    - ``products``: whether there are matrix products in it.
    - ``loose``: how far results may differ at least, of the largest, for what MLX's ways compute otherwise.
    - ``level``: cases of low ones are measured first.
    """

    group: str
    axes: Mapping[str, int]
    dtype: mx.Dtype
    kernel: Kernel
    make: Callable[[], Arrays]
    arguments: Callable[..., tuple[Any, ...]]
    rivals: Mapping[str, Callable[..., Any]]
    floor: int
    links: Mapping[int, int] = field(default_factory=dict)
    wrt: tuple[int, ...] = ()
    products: bool = False
    loose: float = 0.0
    level: int = 0

    @property
    def label(self) -> str:
        """The sizes, the dtype and, where it is taken, the gradient in words."""
        sizes = [f"{name} {value}" for name, value in self.axes.items()]
        return ", ".join([*sizes, NAMES[self.dtype], *([GRADIENT] if self.wrt else [])])

    def tolerance(self) -> float:
        """How far results may differ, of the largest."""
        most = max(TOLERANCE[self.dtype], self.loose)
        if self.products and mx.default_device().type is not mx.cpu:
            most = max(most, TF32)
        return most * (4 if self.wrt else 1)


@dataclass(frozen=True)
class Choice:
    """Which variant computes a case if ours is launched wherever it can be, and which one the rule chooses."""

    variant: str
    launched: bool
    chosen: str
    rule: bool
    reason: str

    def text(self) -> str:
        """In words, for a row."""
        if not self.launched:
            return f"{self.variant}; {self.reason}"
        return f"{self.variant}; {RULE}{'yes' if self.rule else 'no'}; {self.reason}"


def choice(case: Case, inputs: Arrays) -> Choice:
    """Both choices. Compiles and tries our launch if there is one."""
    kernel, arguments = case.kernel, case.arguments(*inputs)
    found = []
    for kind in ("custom", "auto"):
        with settings.KERNELS.override(kind):
            variant = kernel.choose(*arguments)
        assert kernel.last is not None
        found.append((variant.name, kernel.launches(variant), kernel.last[1]))
    (ours, launched, _), (chosen, rule, reason) = found
    return Choice(ours, launched and custom.backend() is not None, chosen, rule, reason)


def cotangents(case: Case, inputs: Arrays) -> Arrays:
    """One for each result, if a gradient is taken."""
    if not case.wrt:
        return ()
    results = tupled(case.kernel.reference(*case.arguments(*inputs)))
    return tuple(mx.random.normal(each.shape).astype(each.dtype) for each in results)


def by_kernel(case: Case) -> Function:
    """The kernel's results, then the gradients, of inputs and cotangents."""
    kernel = case.kernel

    def forward(*inputs: mx.array) -> list[mx.array]:
        return list(kernel.forward(*case.arguments(*inputs))[: kernel.results])

    def with_gradient(*given: mx.array) -> list[mx.array]:
        inputs, upstream = given[: -kernel.results], given[-kernel.results :]
        arguments = case.arguments(*inputs)
        placed, params = arguments[: kernel.arity], arguments[kernel.arity :]
        outputs = kernel.forward(*arguments)
        wanted = [inputs[i] for i in case.wrt]
        slots = [*placed, *(each for each in params if isinstance(each, mx.array))]
        needs = [any(each is one for one in wanted) for each in slots]
        found = kernel.vjp(upstream if kernel.results > 1 else upstream[0], placed, outputs, needs, *params)
        return [*outputs[: kernel.results], *(each for each in found if each is not None)]

    return with_gradient if case.wrt else forward


def by_mlx(case: Case, function: Callable[..., Any]) -> Function:
    """Results of a function of MLX's operations, then the gradients by MLX."""
    results = case.kernel.results

    def forward(*inputs: mx.array) -> list[mx.array]:
        return list(tupled(function(*inputs)))

    def with_gradient(*given: mx.array) -> list[mx.array]:
        inputs, upstream = list(given[:-results]), list(given[-results:])

        def of_wanted(*wanted: mx.array) -> list[mx.array]:
            full = list(inputs)
            for i, each in zip(case.wrt, wanted):
                full[i] = each
            return list(tupled(function(*full)))

        found, gradients = mx.vjp(of_wanted, [inputs[i] for i in case.wrt], upstream)
        return [*found, *gradients]

    return with_gradient if case.wrt else forward


@dataclass(frozen=True)
class Timed:
    """A side before it is timed: a function of inputs and cotangents, and which kernels it is to launch."""

    function: Function
    within: Callable[[], Any]


def timed(case: Case, chosen: Choice, compiled: bool) -> dict[str, Timed]:
    """Ours, what the rule chooses if that is another, MLX's ways; each also under ``mx.compile`` if ``compiled``."""
    ours = by_kernel(case)
    plain = {OURS: Timed(ours, partial(settings.KERNELS.override, "custom"))}
    if chosen.chosen != chosen.variant:
        plain[CHOSEN] = Timed(ours, partial(settings.KERNELS.override, "auto"))
    for name, function in case.rivals.items():
        plain[name] = Timed(by_mlx(case, function), partial(settings.KERNELS.override, "auto"))
    if not compiled:
        return plain
    # A call at a time: MLX would fuse the calls of a chain with each other.
    return {
        **plain,
        **{name + COMPILED: Timed(mx.compile(one.function), one.within) for name, one in plain.items()},
    }


def exact(case: Case, given: Sequence[mx.array]) -> list[mx.array]:
    """The definition's results and gradients in float32."""

    def reference(*inputs: mx.array) -> Any:
        return case.kernel.reference(*case.arguments(*inputs))

    wide = [each.astype(mx.float32) if mx.issubdtype(each.dtype, mx.floating) else each for each in given]
    return list(by_mlx(case, reference)(*wide))


def disagreement(case: Case, side: Timed, given: Sequence[mx.array], wanted: Sequence[mx.array]) -> str | None:
    """How a side's results differ from those wanted, or fail; ``None`` if they agree."""
    try:
        with side.within():
            found = side.function(*given)
            mx.eval(found)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return f"fails: {lines[0]}"
    if len(found) != len(wanted):
        return f"gives {len(found)} arrays where the definition gives {len(wanted)}"
    for i, (got, want) in enumerate(zip(found, wanted)):
        if got.shape != want.shape:
            return f"gives {got.shape} where the definition gives {want.shape}"
        scale = cast("float", mx.max(mx.abs(want)).item())
        off = cast("float", mx.max(mx.abs(got.astype(mx.float32) - want)).item())
        # Not "more than the tolerance", which NaN would pass.
        if not off <= case.tolerance() * scale:
            return f"is off by {off:.3g} of {scale:.3g} in array {i}"
    return None


def calls(case: Case, bandwidth: float) -> int:
    """How many calls a chain makes: as many as take about ``CHAIN`` at ``bandwidth`` bytes a second."""
    on_cpu = mx.default_device().type is mx.cpu
    one = case.floor / bandwidth + LAUNCH
    return max(1 if on_cpu else 4, min(CPU_CALLS if on_cpu else GPU_CALLS, round(CHAIN / one)))


def input_sets(case: Case, count: int, upstream: Arrays) -> list[Arrays]:
    """Inputs of ``count`` calls: distinct ones as far as memory for that goes, then the same again.

    What a call takes from the one before is made for the first call alone.
    """
    most = CPU_DISTINCT if mx.default_device().type is mx.cpu else GPU_DISTINCT
    sets: list[Arrays] = []
    held = 0
    for _ in range(count):
        if sets and held + held // len(sets) > most:
            break
        inputs = case.make()
        if sets:
            inputs = tuple(sets[0][i] if i in case.links else each for i, each in enumerate(inputs))
        mx.eval(inputs)
        held += sum(each.nbytes for i, each in enumerate(inputs) if not sets or i not in case.links)
        sets.append((*inputs, *upstream))
    return [sets[i % len(sets)] for i in range(count)]


def chain(case: Case, function: Function, sets: Sequence[Arrays]) -> Callable[[], None]:
    """What is timed: a call for each set, each on results of the one before where the case links them."""
    # A gradient hangs on each call; else linked results are all in the last ones.
    last_is_all = bool(case.links) and not case.wrt

    def run() -> None:
        kept: list[mx.array] = []
        results: Sequence[mx.array] = ()
        for given in sets:
            inputs = list(given)
            if results:
                for place, result in case.links.items():
                    inputs[place] = results[result]
            results = function(*inputs)
            if not last_is_all:
                kept.extend(results)
        mx.eval(kept or list(results))

    return run


def side(case: Case, one: Timed, sets: Sequence[Arrays]) -> Side:
    """A side to be timed, a run of which is a chain."""
    return Side(chain(case, one.function, sets), within=one.within, calls=len(sets))
