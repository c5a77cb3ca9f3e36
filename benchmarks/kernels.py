"""Each kernel against its plain MLX definition, forward and backward, on the shapes of SmolLM2-135M.

    python benchmarks/kernels.py [--quick] [--tokens 128] [--dtype float32]

Kernel and definition take turns, so that what else the machine does falls on both; medians are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import metal_candle  # noqa: F401  (before mlx.core: it loads the BLAS)
from metal_candle.kernels.attention import attention
from metal_candle.kernels.cross_entropy import cross_entropy, head_cross_entropy
from metal_candle.kernels.elementary import exp, sigmoid, silu
from metal_candle.kernels.fused_lora import add_lora, lora
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.linear import linear
from metal_candle.kernels.rms_norm import rms_norm
from metal_candle.kernels.rope import rope
from metal_candle.kernels.softmax import log_softmax, softmax
from metal_candle.kernels.swiglu import swiglu
from metal_candle.kernels.variant import differentiated_by_mlx

import mlx.core as mx
from measure import Side, alternate, commit, device, repeats_for, versions

HIDDEN, MLP, HEADS, KV, HEAD, VOCABULARY, RANK = 576, 1536, 9, 3, 64, 49152, 8


@dataclass
class Case:
    """A kernel with inputs, which of them need a gradient, and parameters."""

    label: str
    kernel: Kernel
    inputs: tuple[Any, ...]
    needs: tuple[bool, ...]
    params: tuple[Any, ...] = ()


def cases(tokens: int, dtype: mx.Dtype) -> list[Case]:
    """The kernels on what one layer, or the head, of the model gives them."""

    def normal(*shape: int) -> mx.array:
        return mx.random.normal(shape).astype(dtype)

    x, wide = normal(tokens, HIDDEN), normal(tokens, MLP)
    angle = mx.random.uniform(0, 6, (tokens, HEAD // 2))
    cos, sin = mx.cos(angle).astype(dtype), mx.sin(angle).astype(dtype)
    q, k, v = (normal(1, heads, tokens, HEAD) for heads in (HEADS, KV, KV))
    a, b = normal(HIDDEN, RANK) * 0.04, normal(RANK, MLP) * 0.04
    targets = mx.random.randint(0, VOCABULARY, (tokens,))
    head = normal(VOCABULARY, HIDDEN) * 0.05
    frozen = (True, False)
    return [
        Case(f"exp {tokens}x{MLP}", exp, (wide,), (True,)),
        Case(f"sigmoid {tokens}x{MLP}", sigmoid, (wide,), (True,)),
        Case(f"silu {tokens}x{MLP}", silu, (wide,), (True,)),
        Case(f"swiglu {tokens}x{MLP}", swiglu, (wide, normal(tokens, MLP)), (True, True)),
        Case(f"softmax {tokens}x{tokens * HEADS}", softmax, (normal(tokens, tokens * HEADS),), (True,)),
        Case(f"log_softmax {tokens}x{tokens * HEADS}", log_softmax, (normal(tokens, tokens * HEADS),), (True,)),
        Case(f"rms_norm {tokens}x{HIDDEN}", rms_norm, (x, normal(HIDDEN)), frozen, (1e-5,)),
        Case(f"rope {HEADS}x{tokens}x{HEAD}", rope, (q, cos, sin), (True, False, False)),
        Case(f"attention {tokens}, causal", attention, (q, k, v), (True,) * 3, (HEAD**-0.5, "causal")),
        Case(f"attention 1 of {tokens}", attention, (q[:, :, :1], k, v), (True,) * 3, (HEAD**-0.5, None)),
        Case(f"linear {HIDDEN} to {MLP}", linear, (x, normal(MLP, HIDDEN)), frozen),
        Case(f"lora {HIDDEN} to {MLP}", lora, (x, a, b), (True,) * 3, (2.0,)),
        Case(f"add_lora {HIDDEN} to {MLP}", add_lora, (wide, x, a, b), (True,) * 4, (2.0,)),
        Case(
            f"cross_entropy {tokens}x{VOCABULARY}",
            cross_entropy,
            (normal(tokens, VOCABULARY), targets),
            frozen,
        ),
        Case(f"head_cross_entropy {tokens}", head_cross_entropy, (x, head, targets), (True, False, False)),
    ]


def compare(case: Case, rounds: int) -> tuple[list[float], str]:
    """Median milliseconds: kernel and definition forward, then forward and backward; and the variant's name."""
    arguments = (*case.inputs, *case.params)
    plain = differentiated_by_mlx("reference", case.kernel.reference)
    chosen = case.kernel.choose(*arguments)
    mx.eval([a for a in arguments if isinstance(a, mx.array)])
    result = chosen.forward(*arguments)[0]
    cotangent = mx.random.normal(result.shape).astype(result.dtype)
    mx.eval(cotangent)

    def both(variant: Any) -> Any:
        outputs = variant.forward(*arguments)
        gradients = variant.vjp(cotangent, case.inputs, outputs, case.needs, *case.params)
        return outputs[0], [g for g in gradients if g is not None]

    def side(run: Callable[[], Any]) -> Side:
        def computed() -> None:
            mx.eval(run())

        return Side(computed, repeats_for(computed, 0.01, 20))

    sides = {
        "kernel": side(lambda: chosen.forward(*arguments)[0]),
        "plain": side(lambda: plain.forward(*arguments)[0]),
        "kernel, both": side(lambda: both(chosen)),
        "plain, both": side(lambda: both(plain)),
    }
    return [times.median() * 1e3 for times in alternate(sides, rounds).values()], chosen.name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    parser.add_argument("--tokens", type=int, default=128, help="rows (default: 128)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    mx.random.seed(0)
    print(f"{device()}, {options.dtype}\n{versions()}; commit {commit()}")
    print("milliseconds, medians; the ratio is kernel to definition\n")
    titles = ("kernel", "forward", "plain", "ratio", "and backward", "plain", "ratio", "variant")
    print("{:<28}{:>9}{:>9}{:>7}{:>14}{:>9}{:>7}  {}".format(*titles))
    for case in cases(options.tokens, getattr(mx, options.dtype)):
        (ours, theirs, ours_both, theirs_both), name = compare(case, 3 if options.quick else 15)
        print(
            f"{case.label:<28}{ours:>9.3f}{theirs:>9.3f}{ours / theirs:>7.2f}"
            f"{ours_both:>14.3f}{theirs_both:>9.3f}{ours_both / theirs_both:>7.2f}  {name}",
            flush=True,
        )


if __name__ == "__main__":
    main()
