"""The four patterns of the guide from v1 to v2, each in v1's form, in v2's that takes both, and lazy.

python examples/migration_patterns.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import metal_candle as mc  # before mlx.core: on Linux it loads a fast BLAS for MLX
from metal_candle import LazyTensor, Tensor, compat
from metal_candle.training import AdamW, AdamWConfig, LoRAConfig, LoRALayer, cross_entropy_loss

SIZE = 512


def trained_layer(seed: int) -> LoRALayer:
    """A LoRA layer whose B is not zero, as after some training."""
    mc.Device.Cpu.set_seed(seed)
    layer = LoRALayer(SIZE, SIZE, LoRAConfig())
    layer.lora_b().set(Tensor.randn(0.0, 0.1, (8, SIZE)))
    return layer


lora1, lora2, alpha = trained_layer(1), trained_layer(2), Tensor.ones(SIZE)
x = Tensor.randn(0.0, 1.0, (4, SIZE))
inputs = [Tensor.randn(0.0, 1.0, (1, SIZE)) for _ in range(8)]
batch, labels = Tensor.randn(0.0, 1.0, (1, 4, SIZE)), Tensor([[3, 1, 4, 1]], dtype="u32")

# --- 1: a single operation --------------------------------------------------------------------


def single_v1() -> Tensor:
    return lora1.forward(x)


def single_v2() -> Tensor:
    return lora1(x)


def single_lazy() -> Tensor:
    return lora1.forward_lazy(LazyTensor.from_tensor(x)).eval()


# --- 2: a chain -------------------------------------------------------------------------------


def chain_v1() -> Tensor:
    hidden = lora1.forward(x)
    hidden = compat.rms_norm(hidden, alpha, 1e-5)
    return lora2.forward(hidden)


def chain(xs: Any) -> Any:
    """One function for eager and lazy tensors: it answers in kind."""
    return lora2.forward(compat.rms_norm(lora1.forward(xs), alpha, 1e-5))


def chain_v2() -> Tensor:
    return chain(x)


def chain_lazy() -> Tensor:
    return chain(LazyTensor.from_tensor(x)).eval()


# --- 3: a batch -------------------------------------------------------------------------------


def batch_v1() -> list[Tensor]:
    return [lora2.forward(compat.rms_norm(lora1.forward(each), alpha, 1e-5)) for each in inputs]


def batch_v2() -> list[Tensor]:
    return [chain(LazyTensor.from_tensor(each)).eval() for each in inputs]


def batch_lazy() -> list[Tensor]:
    return mc.eval_all([chain(LazyTensor.from_tensor(each)) for each in inputs])


# --- 4: a training loop -----------------------------------------------------------------------


def fresh() -> tuple[LoRALayer, AdamW]:
    layer = trained_layer(3)
    return layer, AdamW(AdamWConfig(learning_rate=1e-2), layer.trainable_variables())


def loop_v1(steps: int = 5) -> list[float]:
    layer, optimizer = fresh()
    losses = []
    for _ in range(steps):
        logits = layer.forward(batch)
        loss = cross_entropy_loss(logits, labels)
        optimizer.backward_step(loss)
        losses.append(loss.to_scalar())
    return losses


def loop_v2(steps: int = 5) -> list[float]:
    layer, optimizer = fresh()
    losses = []
    for _ in range(steps):
        logits = layer.forward_lazy(LazyTensor.from_tensor(batch)).eval()  # gradients flow through eval
        loss = cross_entropy_loss(logits, labels)
        optimizer.backward_step(loss)
        losses.append(loss.to_scalar())
    return losses


def loop_lazy(steps: int = 5) -> list[float]:
    layer, optimizer = fresh()
    losses = []
    for _ in range(steps):
        logits = layer.forward_lazy(LazyTensor.from_tensor(batch))
        loss = cross_entropy_loss(logits, LazyTensor.from_tensor(labels))
        optimizer.backward_step(loss)  # loss and gradients are one graph
        losses.append(loss.eval().to_scalar())
    return losses


PATTERNS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]] = {
    "single operation": (single_v1, single_v2, single_lazy),
    "chain": (chain_v1, chain_v2, chain_lazy),
    "batch": (batch_v1, batch_v2, batch_lazy),
    "training loop": (loop_v1, loop_v2, loop_lazy),
}


def difference(one: Any, other: Any) -> float:
    """The largest difference of two results: tensors, numbers, or lists of them."""
    if isinstance(one, Sequence):
        return max(difference(a, b) for a, b in zip(one, other, strict=True))
    return abs(one - other) if isinstance(one, float) else (one - other).abs().flatten_all().max(0).to_scalar()


def times(forms: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each form; they take turns, so that a busy moment meets all of them."""
    samples: list[list[float]] = [[] for _ in forms]
    for _ in range(rounds):
        for form, seconds in zip(forms, samples):
            start = time.perf_counter()
            form()
            seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in samples]


if __name__ == "__main__":
    print(f"{'pattern':18}{'difference v2':>15}{'lazy':>10}{'time v2 / v1':>15}{'lazy / v1':>12}")
    for name, forms in PATTERNS.items():
        first, second, third = (form() for form in forms)
        v1, v2, lazy = times(forms, 30)
        print(
            f"{name:18}{difference(first, second):>15.1e}{difference(first, third):>10.1e}"
            f"{v2 / v1:>15.2f}{lazy / v1:>12.2f}"
        )
