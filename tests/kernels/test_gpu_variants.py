"""What kernels choose on a GPU, where ours is not launched: MLX's operations, run here on whatever there is.

Each kernel's choice is asked as if MLX computed on a GPU. What it names are MLX's own operations, which the CPU
computes too: so no user of a GPU is the first to run them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import metal_candle.kernels
from metal_candle.kernels import accurate_sum, custom, matmul, quantized_linear
from metal_candle.kernels import head_cross_entropy as head
from metal_candle.kernels.add_matmul import add_matmul, slower
from metal_candle.kernels.attention import attention
from metal_candle.kernels.conv import conv, conv_transpose
from metal_candle.kernels.cross_entropy import cross_entropy
from metal_candle.kernels.elementary import exp, sigmoid, silu
from metal_candle.kernels.erf import erf
from metal_candle.kernels.fused_lora import add_lora, lora
from metal_candle.kernels.gelu_erf import gelu_erf
from metal_candle.kernels.grouped_lora import Adapters, grouped_lora
from metal_candle.kernels.head_cross_entropy import head_cross_entropy
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.linear import linear
from metal_candle.kernels.picked_log_softmax import picked_log_softmax
from metal_candle.kernels.rope import rope
from metal_candle.kernels.softcap import softcap
from metal_candle.kernels.swiglu import swiglu

import mlx.core as mx
import numpy as np
import pytest
from launched import BACKWARD, DTYPES, FORWARD, assert_near, normal, wide

COMPILED = "mx.compile"
FAST_LOSS = "mx.fast.cross_entropy"
FAST_ATTENTION = "mx.fast.scaled_dot_product_attention"


def modules() -> list[Any]:
    found = pkgutil.iter_modules(metal_candle.kernels.__path__)
    return [importlib.import_module(f"{metal_candle.kernels.__name__}.{each.name}") for each in found]


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choices are those of a GPU on which none of our launches passed its trial."""
    for module in modules():
        if hasattr(module, "on_cpu"):
            monkeypatch.setattr(module, "on_cpu", lambda: False)
    monkeypatch.setattr(custom, "backend", lambda: None)
    # Compiled or not is the same to the value, but on the CPU each function costs its compiler a second.
    mx.disable_compile()
    yield
    mx.enable_compile()


class Case(NamedTuple):
    """A kernel on normal numbers of these shapes; an int instead is how many classes the targets name."""

    kernel: Kernel
    shapes: tuple[Any, ...]
    variant: str
    params: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.kernel.name}{list(self.shapes)}{list(self.params)}".replace(" ", "")

    def inputs(self, dtype: mx.Dtype) -> list[Any]:
        made: list[Any] = []
        for i, shape in enumerate(self.shapes):
            if isinstance(shape, int):
                rows = made[0].shape[:1] if self.kernel is head_cross_entropy else made[0].shape[:-1]
                rows = (*rows, 1) if self.kernel is picked_log_softmax else rows
                made.append(mx.random.randint(0, shape, rows, key=mx.random.key(i)))
            else:
                made.append(shape if shape is None else normal(*shape, dtype=dtype, key=i))
        return made


CASES = [
    Case(exp, ((70, 123),), "reference"),
    Case(sigmoid, ((3, 7),), "reference"),
    Case(silu, ((70, 123),), COMPILED),
    Case(gelu_erf, ((70, 123),), COMPILED),
    Case(silu, ((),), COMPILED),
    Case(swiglu, ((70, 123), (70, 123)), COMPILED),
    Case(swiglu, ((1, 1, 5), (1, 1, 5)), COMPILED),
    Case(swiglu, ((0, 5), (0, 5)), COMPILED),
    Case(softcap, ((70, 123),), COMPILED, (2.5,)),
    Case(softcap, ((),), COMPILED, (2.5,)),
    Case(softcap, ((0, 5),), COMPILED, (2.5,)),
    Case(rope, ((2, 3, 5, 8), (5, 4), (5, 4)), "composition"),
    Case(rope, ((2, 3, 5, 8), (5, 4), (5, 4)), "composition", (True,)),
    Case(linear, ((2, 3, 13), (7, 13)), "rows"),
    Case(linear, ((3, 13), (7, 13), (7,)), "rows"),
    Case(add_matmul, ((5, 3), (3, 7), (5, 7)), "mx.addmm", (0.5, 2.0)),
    Case(add_matmul, ((2, 5, 3), (3, 7), (7,)), "mx.addmm"),
    Case(add_matmul, ((2, 5, 3), (2, 3, 7), (1, 5, 7)), "mx.addmm"),
    Case(lora, ((5, 13), (13, 4), (4, 7)), "", (0.5,)),
    Case(add_lora, ((2, 3, 7), (2, 3, 13), (13, 4), (4, 7)), "", (0.5,)),
    Case(grouped_lora, ((5, 7), (5, 13), 2, (5, 13), (5, 7)), "", (Adapters((2, 3), (0.5, 2.0)),)),
    Case(attention, ((1, 4, 9, 16), (1, 2, 9, 16), (1, 2, 9, 16)), FAST_ATTENTION, (0.25,)),
    Case(attention, ((2, 6, 5, 8), (2, 2, 11, 8), (2, 2, 11, 8)), FAST_ATTENTION, (0.3, "causal")),
    Case(attention, ((1, 6, 1, 8), (1, 2, 33, 8), (1, 2, 33, 8)), FAST_ATTENTION, (0.3, "causal")),
    Case(attention, ((1, 2, 5, 8), (1, 1, 3, 8), (1, 1, 3, 4)), FAST_ATTENTION, (0.3,)),
    Case(conv, ((2, 4, 9), (6, 4, 3)), "mx.conv_general", (1, 2, 1, 1)),
    Case(conv, ((2, 4, 9, 7), (6, 2, 3, 2)), "mx.conv_general", (1, 2, 2, 2)),
    Case(conv_transpose, ((2, 4, 9), (4, 6, 3)), "mx.conv_general", (1, 1, 2, 1, 1)),
    Case(conv_transpose, ((2, 4, 5, 6), (4, 3, 3, 2)), "mx.conv_general", (0, 0, 2, 2, 2)),
    Case(cross_entropy, ((70, 123), 123), FAST_LOSS),
    Case(cross_entropy, ((2, 3, 45), 45), FAST_LOSS),
    Case(cross_entropy, ((7, 45), 45), "reference", (0.1,)),
    Case(picked_log_softmax, ((70, 123), 123), FAST_LOSS),
    Case(picked_log_softmax, ((2, 3, 45), 45), FAST_LOSS),
    Case(head_cross_entropy, ((70, 16), (50, 16), 50), "chunks of rows"),
    Case(head_cross_entropy, ((150, 8), (45, 8), 45), "chunks of rows", (0.1,)),
]


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, dtype: mx.Dtype) -> None:
    inputs = case.inputs(dtype)
    result, *saved = case.kernel.forward(*inputs, *case.params)
    assert case.kernel.last is not None
    assert case.kernel.last[0] == case.variant or not case.variant, case.kernel.last
    exact = [wide(each) for each in inputs]
    want = case.kernel.reference(*exact, *case.params)
    assert_near(result, want, loose(FORWARD[dtype], case, dtype), "value")

    places = [i for i, each in enumerate(inputs) if mx.issubdtype(each.dtype, mx.floating)]
    needs = [i in places for i in range(len(inputs))]
    cotangent = normal(*result.shape, dtype=result.dtype, key=9)

    def reference(*arrays: mx.array) -> mx.array:
        full = list(exact)
        for i, array in zip(places, arrays):
            full[i] = array
        return case.kernel.reference(*full, *case.params)

    _, wanted = mx.vjp(reference, [exact[i] for i in places], [wide(cotangent)])
    # With what forward kept, with the result alone, and for one input at a time.
    for outputs in ((result, *saved), (result,)):
        found = case.kernel.vjp(cotangent, inputs, outputs, needs, *case.params)
        for i, expected in zip(places, wanted):
            gradient = found[i]
            assert gradient is not None
            assert gradient.dtype == inputs[i].dtype
            assert_near(gradient, expected, loose(BACKWARD[dtype], case, dtype), f"gradient {i}")
    for i, expected in zip(places, wanted):
        alone = [place == i for place in range(len(inputs))]
        gradient = case.kernel.vjp(cotangent, inputs, (result, *saved), alone, *case.params)[i]
        assert gradient is not None
        assert_near(gradient, expected, loose(BACKWARD[dtype], case, dtype), f"gradient {i} alone")


def loose(tolerance: Any, case: Case, dtype: mx.Dtype) -> Any:
    """Four times the tolerance for halves that MLX adds up without float32 between, the CPU's stand-ins among them."""
    if dtype == mx.float32:
        return tolerance
    return type(tolerance)(4 * tolerance.relative, 4 * tolerance.absolute)


def test_every_kernel_is_asked() -> None:
    kernels = {
        value.name: value for module in modules() for value in vars(module).values() if isinstance(value, Kernel)
    }
    # Softmax and the norms are in files of their own.
    rows = {name for name in kernels if "norm" in name or "softmax" in name} - {"picked_log_softmax"}
    missing = set(kernels) - rows - {case.kernel.name for case in CASES}
    assert not missing, f"kernels whose choice on a GPU is not tried: {sorted(missing)}"


@pytest.mark.usefixtures("as_on_gpu")
def test_masks_of_attention() -> None:
    q, k, v = normal(1, 4, 5, 8, key=1), normal(1, 2, 7, 8, key=2), normal(1, 2, 7, 8, key=3)
    added, kept = normal(4, 5, 7, key=4), mx.arange(7) % 3 != 1
    for mask in (added, kept):
        got = attention.forward(q, k, v, 0.3, mask)[0]
        assert_near(got, attention.reference(q, k, v, 0.3, mask), FORWARD[mx.float32])
    cotangent = normal(1, 4, 5, 8, key=5)
    found = attention.vjp(cotangent, (q, k, v), (got,), (False, False, False, True), 0.3, added)
    _, wanted = mx.vjp(lambda mask: attention.reference(q, k, v, 0.3, mask), [added], [cotangent])
    assert found[3] is not None
    assert_near(found[3], wanted[0], BACKWARD[mx.float32])
    # Queries before the first key, and nothing at all.
    assert attention.forward(k, q[:, :2], q[:, :2], 0.3, "causal")[0].shape == (1, 2, 7, 8)
    assert attention.last == ("reference", "queries before the first key")
    assert attention.forward(q[:, :, :0], k, v, 0.3)[0].shape == (1, 4, 0, 8)


@pytest.mark.usefixtures("as_on_gpu")
def test_nothing_is_taken_as_nothing() -> None:
    ids = mx.zeros((0,), mx.int32)
    assert cross_entropy.forward(mx.zeros((0, 5)), ids)[0].shape == (0,)
    assert picked_log_softmax.forward(mx.zeros((0, 5)), ids[:, None])[0].shape == (0, 1)
    assert picked_log_softmax.forward(normal(2, 5), mx.zeros((2, 3), mx.int32))[0].shape == (2, 3)
    assert head_cross_entropy.forward(mx.zeros((0, 4)), normal(7, 4), ids)[0].shape == (0,)
    assert conv.forward(mx.zeros((0, 4, 9)), normal(6, 4, 3), 1, 1, 1, 1)[0].shape == (0, 6, 9)


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_head_in_several_chunks(dtype: mx.Dtype, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, words = 150, 301
    monkeypatch.setattr(head, "CHUNK_BYTES", 64 * words * dtype.size)
    assert head.chunk_rows(rows, words, dtype.size) == 64
    hidden, weight = normal(rows, 16, dtype=dtype), normal(words, 16, dtype=dtype, key=1)
    targets = mx.random.randint(0, words, (rows,), key=mx.random.key(2))
    exact = (wide(hidden), wide(weight))
    want = head_cross_entropy.reference(*exact, targets, smoothing)
    # The logits are rounded: up to 20 here, so by 20 · 2^-9 in bfloat16.
    tolerance = {mx.float32: (1e-5, 1e-5), mx.float16: (5e-3, 1e-2), mx.bfloat16: (4e-2, 8e-2)}[dtype]
    for gradient in (True, False):
        got = head_cross_entropy.forward(hidden, weight, targets, smoothing, gradient)
        assert got[0].dtype == mx.float32
        np.testing.assert_allclose(np.array(got[0]), np.array(want), *tolerance)
    cotangent = mx.random.uniform(0, 1, (rows,), key=mx.random.key(3))
    _, wanted = mx.vjp(lambda h, w: head_cross_entropy.reference(h, w, targets, smoothing), list(exact), [cotangent])
    found = head_cross_entropy.vjp(cotangent, (hidden, weight, targets), got, (True, True), smoothing)
    for gradient_, expected in zip(found, wanted):
        assert gradient_ is not None
        assert gradient_.dtype == dtype
        size = float(mx.abs(expected).max())
        difference = np.array(gradient_.astype(mx.float32)) / size - np.array(expected) / size
        assert np.abs(difference).max() < tolerance[1]


@pytest.mark.usefixtures("as_on_gpu")
def test_no_more_than_a_chunk_of_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, words = 300, 1001
    monkeypatch.setattr(head, "CHUNK_BYTES", 128 * words * 4)
    hidden, weight, targets = normal(rows, 8), normal(words, 8, key=1), mx.zeros((rows,), mx.int32)
    made: list[tuple[int, ...]] = []
    compute = head.loss_and_gradient

    def recorded(logits: mx.array, *rest: Any) -> tuple[mx.array, mx.array]:
        made.append(logits.shape)
        return compute(logits, *rest)

    monkeypatch.setattr(head, "loss_and_gradient", recorded)
    outputs = head_cross_entropy.forward(hidden, weight, targets)
    assert made == [(128, words), (128, words), (44, words)]
    head_cross_entropy.vjp(mx.ones((rows,)), (hidden, weight, targets), outputs, (True, False))
    assert len(made) == 3, "the hidden states' gradient was made with the loss"
    head_cross_entropy.vjp(mx.ones((rows,)), (hidden, weight, targets), outputs, (True, True))
    assert len(made) == 6, "the weight's takes the logits again"


@pytest.mark.usefixtures("as_on_gpu")
def test_a_head_of_another_dtype() -> None:
    hidden, weight = normal(9, 16, dtype=mx.bfloat16), normal(31, 16, key=1)
    targets = mx.arange(9)
    losses, gradient = head_cross_entropy.forward(hidden, weight, targets)
    assert_near(losses, head_cross_entropy.reference(hidden, weight, targets), FORWARD[mx.float32])
    found = head_cross_entropy.vjp(mx.ones((9,)), (hidden, weight, targets), (losses, gradient), (True, True))
    assert [each.dtype for each in found if each is not None] == [mx.bfloat16, mx.float32]


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000, 8192])
@pytest.mark.parametrize("words", [2, 49_152, 151_936, 10**7])
def test_chunks_are_of_equal_size_and_bounded(rows: int, words: int) -> None:
    step = head.chunk_rows(rows, words, 2)
    assert step % head.TILE == 0
    assert step == head.TILE or step * words * 2 <= head.CHUNK_BYTES
    count = -(-rows // step)
    # One row more in each would do with as many chunks, but for the tile.
    assert step - -(-rows // count) < head.TILE


@pytest.mark.usefixtures("as_on_gpu")
def test_sums() -> None:
    x = normal(3, 5000) + 1
    wide_x = np.array(x, np.float64)
    near = {"rtol": 1e-5, "atol": 1e-4}
    np.testing.assert_allclose(np.array(accurate_sum.total(x, (1,))), wide_x.sum(1), **near)
    np.testing.assert_allclose(np.array(accurate_sum.mean(x, (0, 1), True)), [[wide_x.mean()]], **near)
    np.testing.assert_allclose(np.array(accurate_sum.variance(x, 1)), wide_x.var(1, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(accurate_sum.norm(x).item(), np.sqrt((wide_x**2).sum()), rtol=1e-5)
    np.testing.assert_allclose(np.array(accurate_sum.logsumexp(x, (1,))), np.log(np.exp(wide_x).sum(1)), rtol=1e-5)
    for reverse in (False, True):
        for inclusive in (False, True):
            rows = wide_x[:, ::-1] if reverse else wide_x
            want = rows.cumsum(1) - (0 if inclusive else rows)
            got = np.array(accurate_sum.cumulative(x, 1, reverse, inclusive))
            np.testing.assert_allclose(got, want[:, ::-1] if reverse else want, rtol=1e-4, atol=1e-2)


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_functions(dtype: mx.Dtype) -> None:
    x = normal(50, dtype=dtype)
    assert_near(erf(x), mx.erf(x.astype(mx.float32)), FORWARD[dtype])
    assert erf(x).dtype == dtype
    a, b, c = normal(5, 33, dtype=dtype), normal(33, 7, dtype=dtype, key=1), normal(7, dtype=dtype, key=2)
    product = wide(a) @ wide(b)
    assert_near(matmul.matmul(a, b), product, FORWARD[dtype])
    assert_near(matmul.addmm(c, a, b, 0.5, 2.0), product * 0.5 + wide(c) * 2, FORWARD[dtype])
    assert slower((1000, 8), (8, 8), (8,), dtype) is None, "one call is one kernel"


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("bits", [4, 5, 8, 32])
@pytest.mark.parametrize("rows", [(), (1,), (2, 20), (0,)], ids=str)
def test_quantised_products(bits: int, rows: tuple[int, ...]) -> None:
    dense = normal(48, 64)
    weight: Sequence[mx.array] = [dense] if bits == 32 else mx.quantize(dense, group_size=32, bits=bits)
    numbers = quantized_linear.unpack(weight, bits)
    x, y = normal(*rows, 64, key=1), normal(*rows, 48, key=2)
    assert_near(quantized_linear.forward(x, weight, bits), x @ numbers.T, FORWARD[mx.float32])
    assert_near(quantized_linear.gradient(y, weight, bits), y @ numbers, FORWARD[mx.float32])


GATED: list[Callable[..., Any]] = [
    lambda gate, up: swiglu(gate, up),
    lambda gate, up: mx.compile(lambda g, u: swiglu(g, u) * 2)(gate, up) / 2,
    lambda gate, up: mx.vmap(lambda g, u: swiglu(g, u))(gate, up),
    lambda gate, up: mx.checkpoint(lambda g, u: swiglu(g, u))(gate, up),
]


@pytest.mark.parametrize("function", GATED, ids=["alone", "compile", "vmap", "checkpoint"])
def test_a_compiled_variant_composes(function: Callable[..., Any], as_on_gpu: None) -> None:
    gate, up = normal(3, 5), normal(3, 5, key=1)
    want = swiglu.reference(gate, up)
    assert_near(function(gate, up), want, FORWARD[mx.float32])
    found = mx.grad(lambda g, u: function(g, u).sum(), argnums=(0, 1))(gate, up)
    wanted = mx.grad(lambda g, u: swiglu.reference(g, u).sum(), argnums=(0, 1))(gate, up)
    for got, expected in zip(found, wanted):
        assert_near(got, expected, BACKWARD[mx.float32])


def test_compiled_it_is_one_operation(as_on_gpu: None, tmp_path: Any) -> None:
    mx.enable_compile()
    gate, up = (normal(3, 5, dtype=mx.float16, key=key) for key in (0, 1))
    mx.eval(gate, up)
    result = swiglu.forward(gate, up)[0]
    gradients = swiglu.vjp(up, (gate, up), (result,), (True, True))
    for array in (result, *gradients):
        mx.export_to_dot(str(tmp_path / "graph.dot"), array)
        text = (tmp_path / "graph.dot").read_text()
        operations = [line for line in text.splitlines() if "shape=rectangle" in line]
        assert len(operations) == 1, text
    assert_near(result, swiglu.reference(wide(gate), wide(up)), FORWARD[mx.float16])
    # Another shape takes the same code, an exported function its operations.
    assert swiglu.forward(gate[:2], up[:2])[0].shape == (2, 5)
    mx.export_function(str(tmp_path / "gate.mlxfn"), lambda g, u: swiglu.forward(g, u)[0], gate, up)
    (imported,) = mx.import_function(str(tmp_path / "gate.mlxfn"))(gate, up)
    assert_near(imported, swiglu.reference(wide(gate), wide(up)), FORWARD[mx.float16])
