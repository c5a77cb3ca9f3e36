"""Kernels of ours that compute something else: each fails its trial, and the definition is computed instead.

What is broken is one thing at a time, in the text that a device would compile: a factor, a term, a mask, a guard, a
part of a row. The device is the emulator, not trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from metal_candle import settings
from metal_candle.kernels import custom
from metal_candle.kernels.grouped_lora import Adapters
from metal_candle.kernels.kernel import Kernel

import emulator
import instantiations
import mlx.core as mx
import pytest
from emulator import Emulator
from given import Given
from launched import BACKWARD, assert_near, normal

KERNELS = instantiations.kernels()


class Untrusted(Emulator):
    """The emulator as a device of which nothing is known yet, that reads one text differently."""

    trusted = False

    def __init__(self, name: str, program: str = "", old: str = "", new: str = "", nth: int = 1) -> None:
        super().__init__(checked=False)
        self.name, self.program, self.old, self.new, self.nth = name, program, old, new, nth

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        if program.name == self.program:
            parts = program.body.split(self.old)
            assert len(parts) > self.nth, f"{self.program} has no {self.old!r} any more: take another"
            body = self.old.join(parts[: self.nth]) + self.new + self.old.join(parts[self.nth :])
            header = program.header
            program = Given(program.name, program.inputs, program.outputs, program.contiguous, body=body, header=header)
        return super().launch(program, inputs, how)


class Broken(NamedTuple):
    """The arguments of a kernel, and what is replaced in a program that it launches, by what; the nth place of it."""

    arguments: str
    program: str
    old: str
    new: str
    nth: int = 1


def _norm(rows: int, width: int, tensors: int, beside: int) -> tuple[Any, ...]:
    row = [normal(width, key=4 + i) for i in range(beside)]
    return (*[normal(rows, width, key=i) for i in range(tensors)], *row, 1e-5)


def _lora(*shape: int) -> tuple[Any, ...]:
    rows, width, rank, out = shape
    return normal(rows, out), normal(rows, width), normal(width, rank), normal(rank, out), 0.5


def _grouped() -> tuple[Any, ...]:
    base, x, a, b = normal(5, 60), normal(5, 90), normal(7, 90), normal(7, 60)
    return base, x, mx.array([1, 0, 5, -1, 1]), a, b, Adapters((4, 3), (0.5, 2.0))


ARGUMENTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "rms": ("rms_norm", _norm(5, 600, 1, 1)),
    "rms, narrow": ("rms_norm", _norm(9, 100, 1, 1)),
    "rms, wide": ("rms_norm", _norm(2, 8203, 1, 1)),
    "sum and rms": ("add_rms_norm", _norm(5, 600, 2, 1)),
    "sum and rms, wide": ("add_rms_norm", _norm(2, 8203, 2, 1)),
    "layer": ("layer_norm", _norm(5, 600, 1, 2)),
    "layer, wide": ("layer_norm", _norm(2, 8203, 1, 2)),
    "sum and layer": ("add_layer_norm", _norm(5, 600, 2, 2)),
    "sum and layer, wide": ("add_layer_norm", _norm(2, 8203, 2, 2)),
    "softmax": ("softmax", (normal(3, 601), 0.25)),
    "softmax, short rows": ("softmax", (normal(2050, 5), 0.25)),
    "softmax, mask": ("softmax", (normal(3, 601), 0.25, normal(3, 601, key=1))),
    "softmax, seen": ("softmax", (normal(3, 601), 0.25, mx.arange(601) % 2 == 0)),
    "softmax, causal": ("softmax", (normal(9, 60), 0.25, "causal")),
    "softmax, wide": ("softmax", (normal(2, 20_001), 0.25)),
    "log_softmax": ("log_softmax", (normal(3, 601),)),
    "gradient": ("softmax_backward", (mx.softmax(normal(3, 601)), normal(3, 601, key=1), 0.25, False)),
    "gradient, log": ("softmax_backward", (mx.log(mx.softmax(normal(3, 601))), normal(3, 601, key=1), 0.25, True)),
    "gradient, wide": ("softmax_backward", (mx.softmax(normal(2, 20_001)), normal(2, 20_001, key=1), 0.25, False)),
    "losses": ("cross_entropy", (normal(20, 700), mx.arange(20), 0.1)),
    "losses, wide": ("cross_entropy", (normal(2, 8203), mx.arange(2))),
    "picked": ("picked_log_softmax", (normal(20, 700), mx.arange(20)[:, None])),
    "rope": ("rope", (normal(1, 7, 5, 8), normal(5, 4), normal(5, 4, key=1), False)),
    "rope, interleaved": ("rope", (normal(1, 7, 5, 14), normal(5, 7), normal(5, 7, key=1), True)),
    "swiglu": ("swiglu", (normal(3, 1000), normal(3, 1000, key=1))),
    "softcap": ("softcap", (normal(3, 1000), 5.0)),
    "lora": ("add_lora", _lora(3, 500, 5, 60)),
    "lora, one row": ("add_lora", _lora(1, 90, 200, 60)),
    "grouped": ("grouped_lora", _grouped()),
}

INVERSE = "squares / float(width) + eps[0]"
BROKEN = [
    *[
        Broken(which, which.split(",")[0].split()[-1] + "_norm", old, new)
        for which in ("rms", "sum and rms", "layer", "sum and layer")
        for old, new in (
            ("metal::precise::rsqrt(", "5.0f * metal::precise::rsqrt("),
            (INVERSE, "squares + eps[0]"),
            (INVERSE, "squares / float(width)"),
            ("squares += held[i] * held[i]", "squares += held[i]"),
            ("* beside[i]", "* 1.0f"),
        )
    ],
    Broken("sum and rms", "rms_norm", "held[i] + beside[i]", "held[i]"),
    Broken("sum and rms", "rms_norm", "held[i] + beside[i]", "beside[i]"),
    Broken("sum and layer", "layer_norm", "float(T(held[i] + beside[i]))", "held[i]"),
    Broken("layer", "layer_norm", "held[i] - mean", "held[i]"),
    Broken("layer", "layer_norm", "held[i] += beside[i];", ";"),
    Broken("rms, narrow", "rms_norm", "threads_per_threadgroup.y +", "threads_per_threadgroup.y / 2 +"),
    *[
        Broken(which, "rms_norm", old, new)
        for which in ("rms, wide", "sum and rms, wide")
        for old, new in (("squares += values[i] * values[i];", ";"), ("values[i] * inverse", "values[i]"))
    ],
    Broken("rms, wide", "rms_norm", "value * others[i]", "value"),
    Broken("layer, wide", "layer_norm", "sum += values[i]", "sum += 0.0f"),
    Broken("layer, wide", "layer_norm", "squares += off * off", "squares += off"),
    Broken("sum and layer, wide", "layer_norm", "(values[i] - mean) * inverse", "(values[i] - mean)"),
    Broken("sum and layer, wide", "layer_norm", "weighted + biases[i]", "weighted"),
    Broken("softmax", "softmax", "by = scale[0]", "by = 1.0f"),
    Broken("softmax", "softmax", "metal::exp(of_group - highest)", "1.0f"),
    Broken("softmax", "softmax", "simd_sum(sum * metal::exp(top - highest))", "simd_sum(sum)"),
    Broken("softmax", "softmax", "metal::exp(top - highest) / total", "1.0f / total"),
    Broken("softmax, short rows", "softmax", "threads_per_threadgroup.y +", "threads_per_threadgroup.y / 2 +"),
    Broken("softmax, mask", "softmax", "scaled + masks[i]", "scaled"),
    Broken("softmax, mask", "softmax", "mask_begin += at", "mask_begin += 0 * at"),
    Broken("softmax, seen", "softmax", "masks[i] != 0 ? scaled : -INFINITY", "scaled"),
    Broken("softmax, causal", "softmax", "int(row % uint(t)) + 1", "int(row % uint(t)) + 2"),
    Broken("softmax, wide", "softmax", "sum *= metal::exp(top - highest)", "sum *= 1.0f"),
    Broken("softmax, wide", "softmax", "start -= part;", "start = 0;"),
    Broken("log_softmax", "softmax", "values[i] - top - factor", "values[i] - factor"),
    Broken("log_softmax", "softmax", "metal::log(total)", "total"),
    Broken("gradient", "softmax_backward", "by * (", "("),
    Broken("gradient", "softmax_backward", "(upstream[i] - sum)", "upstream[i]"),
    Broken("gradient, log", "softmax_backward", "metal::exp(results[i]) * sum", "sum"),
    Broken("gradient, wide", "softmax_backward", "start -= part;", "start = 0;"),
    Broken("losses", "cross_entropy", "(1.0f - smoothing) * below", "below"),
    Broken("losses", "cross_entropy", "float(line[target])", "float(line[0])"),
    Broken("losses", "cross_entropy", "metal::log(sum)", "sum"),
    Broken("losses", "cross_entropy_vjp", "upstream * (smoothing / float(n))", "0.0f"),
    Broken("losses", "cross_entropy_vjp", "upstream * (1.0f - smoothing)", "0.0f"),
    Broken("losses", "cross_entropy_vjp", "float(cotangent[row])", "1.0f"),
    Broken("losses, wide", "cross_entropy", "sum *= metal::exp(top - highest)", "sum *= 1.0f"),
    Broken("losses, wide", "cross_entropy_vjp", "first += CHUNKS * step", "first += CHUNKS * step * 2"),
    Broken("picked", "cross_entropy", "numbers[1] < 0.0f", "false"),
    Broken("picked", "cross_entropy_vjp", "* numbers[1]", ""),
    Broken("rope", "rope", "a * cosine[i] - b * sine[i]", "a * cosine[i] + b * sine[i]", 2),
    Broken("rope", "rope", "sine[i] *= sign[0]", "sine[i] *= 1.0f"),
    Broken("rope", "rope", "from + beside", "from"),
    Broken("rope, interleaved", "rope", "INTERLEAVED ? 2 * pair : pair", "pair"),
    Broken("rope, interleaved", "rope", "c * cosine[2 + i]", "c * cosine[i]"),
    Broken("swiglu", "swiglu_vjp", "upstream[i] * u[i]", "u[i]"),
    Broken("swiglu", "swiglu_vjp", "(s + silu * (1.0f - s))", "s"),
    Broken("swiglu", "swiglu_vjp", "u[i] = upstream[i] * silu", "u[i] = upstream[i] * s"),
    Broken("softcap", "softcap", "cap[0] * metal", "metal"),
    Broken("softcap", "softcap", "values[i] / cap[0]", "values[i]"),
    Broken("softcap", "softcap_vjp", "c * c", "c"),
    Broken("lora", "fused_lora", "* scale[0]", ""),
    Broken("lora", "fused_lora", "added[t] + sum[t]", "sum[t]"),
    Broken("lora", "fused_lora", "other < splits", "other < 1"),
    Broken("lora", "fused_lora", "int64_t(row + t) * N", "int64_t(row) * N"),
    Broken("lora, one row", "fused_lora", "i < R * TOKENS", "i < 128"),
    Broken("grouped", "grouped_lora", "* scales[id]", "* scales[0]"),
    Broken("grouped", "grouped_lora", "(begin + r) * b_strides[0]", "r * b_strides[0]"),
    Broken("grouped", "grouped_lora", "float(kept) + sum", "sum"),
]


@pytest.fixture(autouse=True)
def custom_kernels() -> Iterator[None]:
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    with settings.KERNELS.override("custom"):
        yield


def both_ways(name: str) -> tuple[list[mx.array], list[mx.array]]:
    """The kernel's results and gradients, and the definition's."""
    return computed(KERNELS[ARGUMENTS[name][0]], ARGUMENTS[name][1])


def computed(kernel: Kernel, arguments: Sequence[Any]) -> tuple[list[mx.array], list[mx.array]]:
    """Likewise, for these arguments."""
    inputs, params = arguments[: kernel.arity], arguments[kernel.arity :]
    outputs = kernel.forward(*arguments)
    wanted = kernel.reference(*arguments)
    results = list(wanted) if isinstance(wanted, tuple) else [wanted]
    cotangents = tuple(normal(*result.shape, dtype=result.dtype, key=30 + i) for i, result in enumerate(results))
    arrays = [*inputs, *[value for value in params if isinstance(value, mx.array)]]
    needs = [array is not None and mx.issubdtype(array.dtype, mx.floating) for array in arrays]
    found = kernel.vjp(cotangents if len(results) > 1 else cotangents[0], inputs, outputs, needs, *params)
    floating = [isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating) for value in arguments]
    places = [i for i, each in enumerate(floating) if each]

    def defined(*given: mx.array) -> list[mx.array]:
        full = list(arguments)
        for i, array in zip(places, given):
            full[i] = array
        those = kernel.reference(*full)
        return list(those) if isinstance(those, tuple) else [those]

    gradients = mx.vjp(defined, [arguments[i] for i in places], list(cotangents))[1]
    got = [*outputs[: len(results)], *[each for each in found if each is not None]]
    return got, [*results, *gradients]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_right_passes(name: str) -> None:
    with custom.using(Untrusted("a right device")):
        for got, want in zip(*both_ways(name), strict=True):
            assert_near(got, want, BACKWARD[mx.float32])
    last = KERNELS[ARGUMENTS[name][0]].last
    assert last is not None
    assert last[1].startswith("a right device: "), last


def tiny(dtype: mx.Dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Rows of fewer than 8 elements, where most of what a norm or a softmax has for a gradient is rounding."""
    for rows, width in ((9, 1), (2, 7)):
        x = mx.zeros((rows, width), dtype)
        row = mx.zeros((width,), dtype)
        yield from [("rms_norm", (x, row, 1e-5)), ("add_rms_norm", (x, x, row, 1e-5))]
        yield from [("layer_norm", (x, row, row, 1e-5)), ("add_layer_norm", (x, x, row, row, 1e-5))]
        yield from [("softmax", (x, 0.5)), ("softmax", (x, 0.5, mx.zeros((width,)))), ("log_softmax", (x,))]
        yield from [("softmax_backward", (x, x, 0.5, log)) for log in (False, True)]
        yield "cross_entropy", (x, mx.zeros((rows,), mx.int32))
        yield "picked_log_softmax", (x, mx.zeros((rows, 1), mx.int32))
        yield from [("swiglu", (x, x)), ("softcap", (x, 5.0))]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_rounding_fails_no_trial(dtype: mx.Dtype) -> None:
    """pytest takes the warning of one that fails for an error."""
    tried = set()
    every = [(name, arguments) for name, samples in instantiations.SAMPLES.items() for arguments in samples()]
    with custom.using(Untrusted(f"a right device for {dtype}")):
        # Each instantiation takes a while to compile.
        for name, arguments in (*every[::11], *tiny(dtype)):
            kernel = KERNELS[name]
            assert kernel.own is not None
            trial = kernel.own.trial(*arguments)
            dtypes = [value.dtype for value in arguments if isinstance(value, mx.array)]
            if dtypes[0] == dtype and (name, trial.key) not in tried:
                tried.add((name, trial.key))
                computed(kernel, trial.arguments())
    assert len(tried) > 20


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.arguments}: {case.old} to {case.new or 'nothing'}")
def test_what_is_broken_fails(case: Broken) -> None:
    device = Untrusted(f"device {BROKEN.index(case)}", *case[1:])
    with custom.using(device), pytest.warns(RuntimeWarning, match=rf"its trial.* on {device.name} "):
        found = both_ways(case.arguments)
    for got, want in zip(*found, strict=True):
        assert_near(got, want, BACKWARD[mx.float32])
