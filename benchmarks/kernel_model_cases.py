"""Cases of ``kernels.py``: rotary embedding, gated activation, loss; and all kernels on the shapes of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from metal_candle.kernels import attention, cross_entropy, elementary, head_cross_entropy, linear, rope, softmax, swiglu
from metal_candle.kernels import fused_lora as lora
from metal_candle.kernels import rms_norm as rms
from metal_candle.kernels.kernel import Kernel

import kernel_bytes as least
import kernel_rivals as mlx
import mlx.core as mx
from kernel_case import Arrays, Case
from kernel_grid import GRADIENT, Grid, normal


def ropes(grid: Grid) -> Iterator[Case]:
    """Rotary embedding of 32 heads of 128, by halves and interleaved."""
    heads, width = 32, 128
    tokens = grid.sizes({1: 0, 4096: 0, 256: 1, 16: 2}, {1: 0, 128: 1})
    for dtype, (count, interleaved), level in grid.over(tokens, {0: 1, 1: 2}):

        def make(dtype: mx.Dtype = dtype, count: int = count) -> Arrays:
            rates = mlx.BASE ** (-mx.arange(0, width, 2) / width)
            angles = mx.arange(count)[:, None] * rates
            return normal(dtype, 1, heads, count, width), mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)

        def arguments(x: mx.array, cos: mx.array, sin: mx.array, neighbours: int = interleaved) -> tuple[Any, ...]:
            return x, cos, sin, bool(neighbours)

        for gradient in (False, True) if count >= 128 else (False,):
            size = (heads, count, width, dtype.size)
            yield Case(
                group="rope",
                axes={"tokens": count, "interleaved": interleaved},
                dtype=dtype,
                kernel=rope.rope,
                make=make,
                arguments=arguments,
                rivals={"mx.fast": mlx.rope(bool(interleaved)), "plain": mlx.rope_plain(bool(interleaved))},
                floor=least.rope(*size) + (least.rope_gradient(*size) if gradient else 0),
                links={0: 0},
                wrt=(0,) if gradient else (),
                # MLX's one multiplies positions by rates of its own, and a rate is off by a few float32 roundings.
                loose=count * 1e-6,
                level=level + (GRADIENT if gradient else 0),
            )


def swiglus(grid: Grid) -> Iterator[Case]:
    """The gated activation."""
    rows = grid.sizes({4096: 0, 1: 1, 64: 1, 1024: 2}, {128: 0, 1: 1})
    widths = grid.sizes({14336: 0, 1536: 1}, {1536: 0})
    for dtype, (count, width), level in grid.over(rows, widths):

        def make(dtype: mx.Dtype = dtype, count: int = count, width: int = width) -> Arrays:
            # So that silu(gate) is about 1 and a chain of products neither vanishes nor grows.
            gate = mx.random.uniform(1.0, 1.56, (count, width)).astype(dtype)
            return gate, normal(dtype, count, width)

        for gradient in (False, True) if count >= 128 else (False,):
            size = (count, width, dtype.size)
            yield Case(
                group="swiglu",
                axes={"rows": count, "width": width},
                dtype=dtype,
                kernel=swiglu.swiglu,
                make=make,
                arguments=lambda gate, up: (gate, up),
                rivals={"plain": mlx.swiglu},
                floor=least.swiglu(*size) + (least.swiglu_gradient(*size) if gradient else 0),
                links={1: 0},
                wrt=(0, 1) if gradient else (),
                level=level + 1 + (GRADIENT if gradient else 0),
            )


def cross_entropies(grid: Grid) -> Iterator[Case]:
    """Loss of logits, and of hidden states with the head of a vocabulary, whose logits never exist at once."""
    rows = grid.sizes({1024: 0, 64: 1, 4096: 1, 1: 2}, {64: 0, 8: 1})
    words, hidden = 49152, 576
    losses = {"mx.fast": mlx.cross_entropy, "plain": mlx.cross_entropy_plain}
    for dtype, (count,), level in grid.over(rows):

        def targets(count: int = count) -> mx.array:
            return mx.random.randint(0, words, (count,))

        def logits(dtype: mx.Dtype = dtype, count: int = count, of: Callable[[], mx.array] = targets) -> Arrays:
            return normal(dtype, count, words), of()

        def states(dtype: mx.Dtype = dtype, count: int = count, of: Callable[[], mx.array] = targets) -> Arrays:
            return normal(dtype, count, hidden), normal(dtype, words, hidden, scale=0.05), of()

        for gradient in (False, True):
            item, wrt, later = dtype.size, (0,) if gradient else (), 1 + (GRADIENT if gradient else 0)
            yield Case(
                group="cross_entropy",
                axes={"rows": count, "width": words},
                dtype=dtype,
                kernel=cross_entropy.cross_entropy,
                make=logits,
                arguments=lambda logits, targets: (logits, targets),
                rivals=losses,
                floor=least.cross_entropy(count, words, item)
                + (least.cross_entropy_gradient(count, words, item) if gradient else 0),
                wrt=wrt,
                level=level + later,
            )
            yield Case(
                group="head_cross_entropy",
                axes={"rows": count, "hidden": hidden, "width": words},
                dtype=dtype,
                kernel=head_cross_entropy.head_cross_entropy,
                make=states,
                arguments=lambda hidden, head, targets, gradient=gradient: (hidden, head, targets, 0.0, gradient),
                rivals={f"logits, {name}": mlx.head_cross_entropy(loss) for name, loss in losses.items()},
                floor=least.head_cross_entropy(count, hidden, words, item)
                + (least.head_cross_entropy_gradient(count, hidden, words, item) if gradient else 0),
                wrt=wrt,
                products=True,
                level=level + later,
            )


HIDDEN, MLP, HEADS, KV, HEAD, VOCABULARY, RANK = 576, 1536, 9, 3, 64, 49152, 8


def smollm2(grid: Grid) -> Iterator[Case]:
    """What one layer, or the head, of SmolLM2-135M gives the kernels, against their definitions."""
    for dtype, level in grid.levels():
        for kernel, make, params, wrt in _smollm2(dtype, grid.tokens):

            def definition(*inputs: mx.array, kernel: Kernel = kernel, params: tuple[Any, ...] = params) -> Any:
                return kernel.reference(*inputs, *params)

            rivals = {"definition": definition}
            if kernel is attention.attention:
                rivals["mx.fast"] = mlx.attention(*params)
            inputs = make()
            results = mlx.tupled(definition(*inputs))
            for gradient in (False, True):
                more = least.of_arrays_gradient(inputs, results, wrt) if gradient else 0
                yield Case(
                    group=f"smollm2.{kernel.name}",
                    axes={"tokens": grid.tokens, "queries": inputs[0].shape[-2], "width": inputs[0].shape[-1]},
                    dtype=dtype,
                    kernel=kernel,
                    make=make,
                    arguments=lambda *inputs, params=params: (*inputs, *params),
                    rivals=rivals,
                    floor=least.of_arrays(inputs, results) + more,
                    wrt=wrt if gradient else (),
                    products=True,
                    level=level + GRADIENT + gradient,
                )


Maker = Callable[[], Arrays]


def _smollm2(dtype: mx.Dtype, tokens: int) -> Iterator[tuple[Kernel, Maker, tuple[Any, ...], tuple[int, ...]]]:
    """Kernels, what makes their inputs, parameters, and inputs with a gradient: of adapters, not of frozen weights."""

    def of(*shapes: tuple[int, ...]) -> Maker:
        # The second and third of several are weights: with columns of length 1 a product is as large as its input.
        scales = [1.0, *(shape[0] ** -0.5 for shape in shapes[1:])]
        return lambda: tuple(normal(dtype, *shape, scale=scale) for shape, scale in zip(shapes, scales))

    x, wide, factors = (tokens, HIDDEN), (tokens, MLP), ((HIDDEN, RANK), (RANK, MLP))
    queries, keys = (1, HEADS, tokens, HEAD), (1, KV, tokens, HEAD)
    for kernel in (elementary.exp, elementary.sigmoid, elementary.silu):
        yield kernel, of(wide), (), (0,)
    yield swiglu.swiglu, of(wide, wide), (), (0, 1)
    for kernel in (softmax.softmax, softmax.log_softmax):
        yield kernel, of((tokens, tokens * HEADS)), (), (0,)
    yield rms.rms_norm, of(x, (HIDDEN,)), (1e-5,), (0,)
    yield rope.rope, of(queries, (tokens, HEAD // 2), (tokens, HEAD // 2)), (), (0,)
    yield attention.attention, of(queries, keys, keys), (HEAD**-0.5, "causal"), (0, 1, 2)
    yield attention.attention, of((1, HEADS, 1, HEAD), keys, keys), (HEAD**-0.5, None), (0, 1, 2)
    yield linear.linear, of(x, (MLP, HIDDEN)), (), (0,)
    yield lora.lora, of(x, *factors), (2.0,), (0, 1, 2)
    yield lora.add_lora, lambda: (*of(wide)(), *of(x, *factors)()), (2.0,), (0, 1, 2, 3)

    def targets() -> mx.array:
        return mx.random.randint(0, VOCABULARY, (tokens,))

    yield cross_entropy.cross_entropy, lambda: (*of((tokens, VOCABULARY))(), targets()), (), (0,)
    yield head_cross_entropy.head_cross_entropy, lambda: (*of(x, (VOCABULARY, HIDDEN))(), targets()), (), (0,)
