"""The lazy graph: what is recorded, what it is rewritten to, and the ways to compute it.

python examples/lazy_graph.py [--svg graph.svg]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import metal_candle as mc  # before mlx.core: on Linux it loads a fast BLAS for MLX
from metal_candle import LazyTensor, Tensor, Var, features

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--svg", type=Path, help="draw the graph of the first part into this file")
arguments = parser.parse_args()

# A layer with a low-rank update, as it stands in the paper. Nothing is computed while it is recorded.
x = LazyTensor.randn(0.0, 1.0, (8, 64))
weight = LazyTensor.randn(0.0, 0.125, (64, 64))
lora_a = LazyTensor.randn(0.0, 0.125, (64, 4))
lora_b = LazyTensor.randn(0.0, 0.5, (4, 64))
y = x.matmul(weight) + x.matmul(lora_a).matmul(lora_b) * 2.0

# Before and after rewriting, which rules apply, which kernels are chosen, FLOPs and bytes.
print(y.explain())
if arguments.svg is not None:
    arguments.svg.write_text(y.to_svg(), "utf-8")  # a notebook draws it by itself

# A value that somebody holds is not fused away; explain() says so.
hidden = x.matmul(lora_a)
held = x.matmul(weight) + hidden.matmul(lora_b) * 2.0
print("\n".join(line for line in held.explain().splitlines() if "somebody holds" in line))

# To find the rule behind a numerical difference, switch off all of them, or one by name.
with features.disabled("rewrite.lora"):
    plain = held.eval()
print("largest difference", (y.eval() - plain).abs().max_all().to_scalar())

# Several results in one evaluation; independent ones share the cores of a CPU where that pays.
inputs = [LazyTensor.randn(0.0, 1.0, (256, 512)) for _ in range(4)]
results = mc.eval_all([each.softmax(-1).log() for each in inputs])
print([tuple(result.shape) for result in results])


# Without blocking: an evaluation begins when it is asked for, and can be awaited or waited on.
async def both() -> list[Tensor]:
    first, second = (each.exp().sum_all().eval_async() for each in inputs[:2])
    return [await first, await second]


print([round(result.to_scalar()) > 0 for result in asyncio.run(both())])
print(inputs[2].sum_all().eval_async().wait().shape)

# A function of tensors: traced once per shape, rewritten, and replayed as one evaluation; gradients are taken inside.
base, update = Tensor.randn(0.0, 1.0, (8, 64)), lora_b.eval()
w = Var.randn(0.0, 0.1, (64, 4))


@mc.compile
def step(x: Tensor) -> Tensor:
    loss = (base + x.matmul(w).matmul(update) * 2.0).sqr().mean_all()
    w.set(w - loss.backward()[w] * 0.05)
    return loss


batch = Tensor.randn(0.0, 1.0, (8, 64))
print([round(step(batch).to_scalar(), 3) for _ in range(5)])
step(batch.narrow(0, 0, 1))  # another shape: another plan, and explain() says why
print(step.explain())
