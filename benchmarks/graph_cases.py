"""What ``graph.py`` measures: each case written once for MLX and once for tensors.

Weights have the layout (in, out). LoRA is spelled as mlx-lm's layer does, with the scale behind both products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var
from metal_candle.graph.differentiate import gradients
from metal_candle.graph.node import GraphNode
from metal_candle.nn import ops

import mlx.core as mx
from graph_case import Case, each_waited_for, forward, waited
from mlx.utils import tree_map

RANK, SCALE, EPS = 8, 2.0, 1e-5
WIDTHS, LAYERS, TOKENS = (16, 256, 512, 1024, 2048), (1, 2, 16), (1, 8, 128)
ROWS = ((1, 16), (8, 256), (128, 512), (128, 4096))
# Softmax makes a row nearly equal, the norm behind it magnifies what is left: about ten times in each of four layers.
TOLERANCE_MAGNIFIED = 5e-3
BLOCKS = ((64, 256, 4, 4), (128, 576, 9, 3))


def _normal(*shape: int, share: float = 1.0) -> mx.array:
    return mx.random.normal(shape) * share


def _matrix(inputs: int, outputs: int) -> mx.array:
    return _normal(inputs, outputs, share=inputs**-0.5)


# --- LoRA -----------------------------------------------------------------------------------------


def lora_chain(x: Any, layers: Sequence[Any]) -> Any:
    """``x · W + scale · (x · A) · B``, layer by layer: of arrays and of tensors alike."""
    for w, a, b in layers:
        x = x @ w + SCALE * (x @ a @ b)
    return x


def _lora_layers(width: int, count: int) -> list[tuple[mx.array, mx.array, mx.array]]:
    return [(_matrix(width, width), _matrix(width, RANK), _matrix(RANK, width) * (0.1 / SCALE)) for _ in range(count)]


def lora(quick: bool) -> Iterator[Case]:
    """Chains of LoRA layers."""
    for width in WIDTHS[::2] if quick else WIDTHS:
        layers = _lora_layers(width, LAYERS[-1])
        for count in (1, LAYERS[-1])[: 1 if width > 1024 else 2] if quick else LAYERS:
            for tokens in (1, TOKENS[-1]) if quick else TOKENS:
                label = f"{count} x {width}, {tokens} token{'s' if tokens > 1 else ''}"
                yield forward("lora", label, lora_chain, lora_chain, _normal(tokens, width), layers[:count])


def lora_gradient(quick: bool) -> Iterator[Case]:
    """One LoRA layer forward, and the gradients of A and B for the sum of squares."""
    for width in WIDTHS[::2] if quick else WIDTHS:
        (layer,) = _lora_layers(width, 1)
        for tokens in TOKENS[-1:] if quick else TOKENS[1:]:
            yield _gradient(f"1 x {width}, {tokens} tokens", _normal(tokens, width), *layer)


def _gradient(label: str, x: mx.array, w: mx.array, a: mx.array, b: mx.array) -> Case:
    mx.eval(x, w, a, b)
    var_a, var_b = (Var.from_tensor(Tensor.from_mlx(matrix)) for matrix in (a, b))
    eager_x, eager_w = Tensor.from_mlx(x), Tensor.from_mlx(w)
    lazy_x, lazy_w = LazyTensor.from_tensor(eager_x), LazyTensor.from_tensor(eager_w)

    def raw_loss(a: mx.array, b: mx.array) -> mx.array:
        return mx.sum(mx.square(lora_chain(x, [(w, a, b)])))

    differentiated = mx.value_and_grad(raw_loss, argnums=(0, 1))

    def raw() -> Any:
        value, (of_a, of_b) = differentiated(a, b)
        mx.eval(value, of_a, of_b)
        return [value, of_a, of_b]

    def loss(x: Any, w: Any) -> Any:
        lifted = [LazyTensor.from_tensor(var) if isinstance(x, LazyTensor) else var for var in (var_a, var_b)]
        return lora_chain(x, [(w, *lifted)]).sqr().sum_all()

    def ours(x: Any, w: Any) -> Any:
        value = loss(x, w)
        grads = value.backward()
        return [value, grads[var_a], grads[var_b]]

    compiled = mc.compile(lambda x: ours(x, eager_w))

    def lazy() -> Any:
        return ours(lazy_x, lazy_w)  # backward() computes loss and gradients in one evaluation

    sides: dict[str, Callable[[], Any]] = {
        "raw": raw,
        "unrewritten": lazy,
        "lazy": lazy,
        "compiled": lambda: compiled(eager_x),
        "eager": lambda: waited(ours(eager_x, eager_w)),
    }

    def record() -> list[GraphNode]:
        value = loss(lazy_x, lazy_w)._node
        return [value, *gradients(value).values()]

    def before() -> list[GraphNode]:
        return [loss(lazy_x, lazy_w)._node]

    return Case("lora_gradient", label, sides, lambda: differentiated(a, b), record, before)


# --- chains of one operation ----------------------------------------------------------------------


def _ten(step: Callable[..., Any]) -> Callable[..., Any]:
    def chain(x: Any, *weights: Any) -> Any:
        for _ in range(10):
            x = step(x, *weights)
        return x

    return chain


def spelled_norm(x: Any, weight: Any) -> Any:
    """An RMS norm as a model's source spells it, of tensors."""
    return x / (x.sqr().mean_keepdim(-1) + EPS).sqrt() * weight


def raw_spelled_norm(x: mx.array, weight: mx.array) -> mx.array:
    """An RMS norm as a model's source spells it, of arrays."""
    return x / mx.sqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + EPS) * weight


def softmax(quick: bool) -> Iterator[Case]:
    """Ten softmax in a row."""
    raw = _ten(lambda x, _: mx.softmax(x, axis=-1, precise=True))
    for shape in ROWS:
        ours = _ten(lambda x, _: x.softmax(-1))
        yield forward("softmax", f"10 of {shape[0]} x {shape[1]}", raw, ours, _normal(*shape), mx.zeros(0))


def rms_norm(quick: bool) -> Iterator[Case]:
    """Ten RMS norms in a row, by the operation of that name."""
    raw = _ten(lambda x, w: mx.fast.rms_norm(x, w, EPS))
    for shape in ROWS:
        ours, weight = _ten(lambda x, w: ops.rms_norm(x, w, EPS)), 1 + _normal(shape[1], share=0.1)
        yield forward("rms_norm", f"10 of {shape[0]} x {shape[1]}", raw, ours, _normal(*shape), weight)


def spelled_rms_norm(quick: bool) -> Iterator[Case]:
    """Ten RMS norms in a row, spelled out; raw MLX has its fast one, and a further side is spelled out too."""
    raw, spelled = _ten(lambda x, w: mx.fast.rms_norm(x, w, EPS)), _ten(raw_spelled_norm)
    for shape in ROWS:
        x, weight = _normal(*shape), 1 + _normal(shape[1], share=0.1)
        case = forward("spelled_rms_norm", f"10 of {shape[0]} x {shape[1]}", raw, _ten(spelled_norm), x, weight)

        def raw_spelled(x: mx.array = x, weight: mx.array = weight) -> mx.array:
            result: mx.array = spelled(x, weight)
            mx.eval(result)
            return result

        case.sides["raw spelled"] = raw_spelled
        yield case


def small_operations(quick: bool) -> Iterator[Case]:
    """Twenty element-wise operations on sixteen floats."""

    def chain(x: Any, y: Any) -> Any:
        for _ in range(5):
            x = ((x * 0.5).sin() + y).cos()
        return x

    case = forward("small_operations", "20 of 16 floats", chain, chain, _normal(16), _normal(16))
    case.sides["eager, each waited for"] = case.sides["eager"]
    yield replace(case, within={"eager, each waited for": each_waited_for})


# --- a transformer block --------------------------------------------------------------------------


def raw_block(x: mx.array, p: dict[str, mx.array], heads: int, kv: int) -> mx.array:
    """A block by hand, with all that ``mx.fast`` has. ``mx.compile`` is left out: on a CPU it calls a C++ compiler."""
    b, t, width = x.shape
    d = width // heads

    def split(projected: mx.array, count: int) -> mx.array:
        return projected.reshape(b, t, count, d).transpose(0, 2, 1, 3)

    normed = mx.fast.rms_norm(x, p["norm1"], EPS)
    q, k, v = split(normed @ p["q"], heads), split(normed @ p["k"], kv), split(normed @ p["v"], kv)
    rope = partial(mx.fast.rope, dims=d, traditional=False, base=10000.0, scale=1.0, offset=0)
    mixed = mx.fast.scaled_dot_product_attention(rope(q), rope(k), v, scale=d**-0.5, mask="causal")
    x = x + mixed.transpose(0, 2, 1, 3).reshape(b, t, width) @ p["o"]
    normed = mx.fast.rms_norm(x, p["norm2"], EPS)
    gate = normed @ p["gate"]
    return x + (gate * mx.sigmoid(gate) * (normed @ p["up"])) @ p["down"]


def block(x: Any, p: dict[str, Any], heads: int, kv: int) -> Any:
    """The block in plain operations of tensors: norms, rotation, attention and gate are spelled out."""
    b, t, width = x.shape
    d = width // heads

    def split(projected: Any, count: int) -> Any:
        return projected.reshape((b, t, count, d)).transpose(1, 2)

    def joined(*parts: Any) -> Any:
        return type(parts[0]).cat(list(parts), -1)

    def rotated(x: Any) -> Any:
        turned = joined(-x.narrow(-1, d // 2, d // 2), x.narrow(-1, 0, d // 2))
        return x * joined(p["cos"], p["cos"]) + turned * joined(p["sin"], p["sin"])

    def repeated(x: Any) -> Any:
        return x if kv == heads else x.unsqueeze(2).expand((b, kv, heads // kv, t, d)).reshape((b, heads, t, d))

    normed = spelled_norm(x, p["norm1"])
    q, k, v = (split(normed.broadcast_matmul(p[name]), n) for name, n in (("q", heads), ("k", kv), ("v", kv)))
    scores = (rotated(q) @ repeated(rotated(k)).transpose(2, 3)) * d**-0.5 + p["mask"]
    mixed = scores.softmax(-1) @ repeated(v)
    x = x + mixed.transpose(1, 2).reshape((b, t, width)).broadcast_matmul(p["o"])
    normed = spelled_norm(x, p["norm2"])
    gated = normed.broadcast_matmul(p["gate"]).silu() * normed.broadcast_matmul(p["up"])
    return x + gated.broadcast_matmul(p["down"])


def transformer_block(quick: bool) -> Iterator[Case]:
    """One block of a Llama, a batch of one."""
    for t, width, heads, kv in BLOCKS:
        d, mlp = width // heads, width * 8 // 3
        sizes = {"q": (width, width), "k": (width, kv * d), "v": (width, kv * d), "o": (width, width)}
        sizes |= {"gate": (width, mlp), "up": (width, mlp), "down": (mlp, width)}
        p = {name: _matrix(*size) for name, size in sizes.items()}
        p |= {name: 1 + _normal(width, share=0.1) for name in ("norm1", "norm2")}
        angles = mx.arange(t)[:, None] * 10000.0 ** (-mx.arange(d // 2) / (d // 2))
        p |= {"cos": mx.cos(angles), "sin": mx.sin(angles)}
        p["mask"] = mx.where(mx.tri(t, dtype=mx.float32) == 1, 0.0, -mx.inf)
        raw, ours = partial(raw_block, heads=heads, kv=kv), partial(block, heads=heads, kv=kv)
        grouped = f"{heads} heads" if kv == heads else f"{heads} heads, {kv} of k and v"
        yield forward("transformer_block", f"{t} x {width}, {grouped}", raw, ours, _normal(1, t, width), p)


# --- independent inputs ---------------------------------------------------------------------------


def independent(quick: bool) -> Iterator[Case]:
    """Softmax of four layers of softmax, GELU and norm, of 32 inputs; a further side evaluates one by one."""

    def raw(xs: list[mx.array], w: mx.array) -> list[mx.array]:
        results = []
        for x in xs:
            for _ in range(4):
                x = mx.softmax(x, axis=-1, precise=True)
                x = x * (1 + mx.erf(x * 0.5**0.5)) * 0.5
                x = mx.fast.rms_norm(x, w, EPS)
            results.append(mx.softmax(x, axis=-1, precise=True))
        return results

    def one(x: Any, w: Any) -> Any:
        for _ in range(4):
            x = ops.rms_norm(x.softmax(-1).gelu_erf(), w, EPS)
        return x.softmax(-1)

    def case(rows: int) -> Case:
        xs, w = [_normal(rows, 512) for _ in range(32)], 1 + _normal(512, share=0.1)
        sides = forward("independent", f"32 of {rows} x 512", raw, lambda xs, w: [one(x, w) for x in xs], xs, w)
        lazy_xs, lazy_w = tree_map(LazyTensor.from_mlx, xs), LazyTensor.from_mlx(w)
        sides.sides["one by one"] = lambda: [one(x, lazy_w).eval() for x in lazy_xs]
        return replace(sides, tolerance=TOLERANCE_MAGNIFIED)

    yield from map(case, (64,) if quick else (64, 256))


GROUPS: dict[str, Callable[[bool], Iterator[Case]]] = {
    each.__name__: each
    for each in (
        lora,
        lora_gradient,
        softmax,
        rms_norm,
        spelled_rms_norm,
        small_operations,
        transformer_block,
        independent,
    )
}
