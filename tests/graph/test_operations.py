"""Every record that has samples: shape, dtype, value, gradient, and lazy, eager and compiled alike.

Derived from the registry. A record without samples has to be named in ``WRITTEN``, with the file that tests it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.graph import operations
from metal_candle.graph.node import record
from metal_candle.graph.operation import REGISTRY, Operation, Sample

import numpy as np
import pytest
from tolerance import GRADIENT, VALUE, assert_near

# What takes more than plain floats is tested by hand.
WRITTEN = {
    "input": "test_graph.py",
    "checkpoint": "../nn/test_gradient_checkpointing.py",
    "pick": "test_differentiate.py",
    "vjp": "test_differentiate.py",
    "to_device": "test_graph.py",
    "custom": "../tensor/test_custom_op.py",
    "custom_without_backward": "../tensor/test_custom_op.py",
    "index_select": "test_index_operations.py",
    "embedding": "test_index_operations.py",
    "gather": "test_index_operations.py",
    "where_cond": "test_index_operations.py",
    "sort_last_dim": "test_sort.py",
    "uniform": "test_random.py",
    "normal": "test_random.py",
    "dropout": "test_random.py",
    "head_cross_entropy": "test_head_cross_entropy.py",
    "cross_entropy": "../nn/test_loss.py",
    "adam_update": "../nn/test_optim_adam.py",
    "sgd_update": "../nn/test_optim_sgd.py",
    "muon_update": "../nn/test_optim_muon.py",
    "quantized_linear": "../quantized/test_qmatmul.py",
    "quantized_embedding": "../quantized/test_qtensor.py",
    "quantized_head_cross_entropy": "../nn/test_quantized_layers.py",
    "global_norm": "../nn/test_optim_clip.py",
    "clip_factor": "../nn/test_optim_clip.py",
    "scale_gradients": "../nn/test_optim_clip.py",
    "clamp_gradients": "../nn/test_optim_clip.py",
    "add_rms_norm": "test_add_norm.py",
    "add_layer_norm": "test_add_norm.py",
    "lstm": "../nn/test_rnn_lstm.py",
    "expert_linear": "../nn/test_moe.py",
    "batch_norm": "../nn/test_batch_norm.py",
    "mlx_function": "test_mlx_function.py",
    "mlx_loss": "test_mlx_function.py",
}
# What candle and metal-candle have no name for.
UNNAMED = ("add_lora", "grouped_lora")
OWN = {key: kind for key, kind in REGISTRY.items() if kind.__module__.startswith(operations.__name__)}
SAMPLED = {key: kind for key, kind in OWN.items() if kind.samples}
CASES = [
    pytest.param(kind, sample, id=f"{key}-{sample.shapes}-{sample.params}")
    for key, kind in SAMPLED.items()
    for sample in kind.samples
]


def arrays(sample: Sample, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Inputs in the sample's range; distinct, so that no maximum is a tie, and away from 0."""
    rng, ids = np.random.default_rng(seed), dict(sample.ids)
    made = []
    for place, shape in enumerate(sample.shapes):
        if place in ids:
            made.append(rng.integers(0, ids[place], shape))
            continue
        count = int(np.prod(shape))
        steps = rng.permutation(count) + rng.uniform(0.2, 0.8)
        made.append((sample.low + (sample.high - sample.low) * steps / max(count, 1)).reshape(shape).astype(np.float32))
    return made


def floats(sample: Sample) -> list[int]:
    """The places of the operands that hold floats."""
    return [place for place in range(len(sample.shapes)) if place not in dict(sample.ids)]


def converted(sample: Sample, inputs: list[np.ndarray[Any, Any]], dtype: Any) -> list[np.ndarray[Any, Any]]:
    return [x.astype(dtype) if place in floats(sample) else x for place, x in enumerate(inputs)]


def of(kind: type[Operation], sample: Sample) -> Operation:
    return kind(*sample.params)


def run(operation: Operation, tensors: list[Any]) -> Any:
    return tensors[0]._wrap(record(operation, tuple(tensor._node for tensor in tensors)))


def reference(kind: type[Operation], sample: Sample, inputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    assert kind.numpy is not None
    with np.errstate(all="ignore"):
        return np.asarray(kind.numpy(*converted(sample, inputs, np.float64), *sample.params))


@pytest.mark.parametrize(("kind", "sample"), CASES)
def test_shape_dtype_and_value(kind: type[Operation], sample: Sample) -> None:
    inputs = arrays(sample)
    result = run(of(kind, sample), [Tensor.new(x) for x in inputs])
    want = reference(kind, sample, inputs)
    assert tuple(result.shape) == want.shape == result.mlx().shape
    assert result.dtype.mlx_ == result.mlx().dtype
    assert_near(result.numpy(), want, VALUE[result.dtype if result.dtype.is_float() else DType.F32])


@pytest.mark.parametrize(("kind", "sample"), CASES)
def test_lazy_eager_and_compiled_are_equal(kind: type[Operation], sample: Sample) -> None:
    operation, inputs = of(kind, sample), [Tensor.new(x) for x in arrays(sample)]
    eager = run(operation, inputs)
    lazy = run(operation, [LazyTensor.from_tensor(x) for x in inputs])
    assert not lazy.is_evaluated()
    assert (lazy.shape, lazy.dtype) == (eager.shape, eager.dtype)
    compiled = mc.compile(lambda tensors: run(operation, tensors))
    for other in (lazy.eval(), compiled(inputs)):
        assert (other.shape, other.dtype) == (eager.shape, eager.dtype)
        np.testing.assert_array_equal(other.numpy(), eager.numpy())


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize(("kind", "sample"), CASES)
def test_halves_are_the_float32_result_rounded(kind: type[Operation], sample: Sample, dtype: DType) -> None:
    inputs, own = [Tensor.new(x) for x in arrays(sample)], floats(sample)
    halves = [x.to_dtype(dtype) if i in own else x for i, x in enumerate(inputs)]
    wide = run(of(kind, sample), [x.to_dtype(DType.F32) if i in own else x for i, x in enumerate(halves)])
    result = run(of(kind, sample), halves)
    if result.dtype.is_float() and not isinstance(of(kind, sample), operations.unary.ToDtype):
        assert result.dtype is dtype
    tolerance = VALUE[dtype]
    # A sum's error goes with its terms, not with what is left of them.
    scale = max(1.0, float(np.abs(wide.numpy()).max(initial=0.0)))
    assert_near(result.numpy(), wide.numpy(), tolerance._replace(absolute=tolerance.absolute * scale))


@pytest.mark.parametrize(("kind", "sample"), [case for case in CASES if case.values[0].differentiable])
def test_gradient_against_central_differences(kind: type[Operation], sample: Sample) -> None:
    """In float64, where little but the formula matters, and in float32, which takes other paths."""
    operation, inputs = of(kind, sample), arrays(sample)
    # A rounding has no slope; what is differentiated of a conversion is the value.
    numpy = (lambda x, dtype: x) if kind is operations.unary.ToDtype else kind.numpy
    assert numpy is not None
    wide = converted(sample, inputs, np.float64)
    shape = tuple(operation.infer(*[LazyTensor.new(x)._node.meta for x in inputs]).shape)
    # Few bits, so that the gradient of a conversion to halves is exact.
    weights = np.random.default_rng(1).integers(8, 24, shape).astype(np.float32) / 16

    def loss(values: list[np.ndarray[Any, Any]]) -> float:
        return float((np.asarray(numpy(*values, *sample.params)) * weights).sum())

    wants = {}
    for i in floats(sample):
        wants[i] = np.zeros_like(wide[i])
        for place in np.ndindex(*wide[i].shape):
            moved = [x.copy() for x in wide]
            step = 1e-5
            moved[i][place] += step
            above = loss(moved)
            moved[i][place] -= 2 * step
            wants[i][place] = (above - loss(moved)) / (2 * step)

    for dtype in (DType.F64, DType.F32):
        values = converted(sample, inputs, np.float64 if dtype is DType.F64 else np.float32)
        tensors: list[Any] = [
            Var.new(x, Device.Cpu) if i in wants else Tensor.new(x, Device.Cpu) for i, x in enumerate(values)
        ]
        lazy = run(operation, [LazyTensor.from_tensor(x) for x in tensors])
        eager = run(operation, tensors)
        assert lazy.track_op()
        assert eager.track_op()
        # A lazy forward pass may keep what the backward pass likes to find again, an eager one does not.
        for result in (lazy, eager):
            weight = type(result).new(weights, Device.Cpu).to_dtype(result.dtype)
            grads = result.mul(weight).sum_all().backward()
            for i, want in wants.items():
                got = grads[tensors[i]]
                assert (got.shape, got.dtype) == (tensors[i].shape, tensors[i].dtype)
                assert_near(got.numpy(), want, GRADIENT[dtype])


@pytest.mark.parametrize("key", OWN)
def test_every_record_is_tested_and_documented(key: str) -> None:
    kind = OWN[key]
    assert inspect.cleandoc(kind.__dict__["__doc__"] or "").strip()
    assert bool(kind.samples) != (key in WRITTEN), "a record has samples, or is named in WRITTEN"
    assert not kind.samples or kind.numpy is not None
    assert kind.methods == () or kind.candle or key in UNNAMED, "a method names the Rust signature it mirrors"


def test_written_tests_exist_and_name_their_record() -> None:
    for key, name in WRITTEN.items():
        assert key in OWN
        text = (Path(__file__).parent / name).read_text()
        assert OWN[key].__name__ in text or key in text, f"{name} does not mention {key}"


@pytest.mark.parametrize(("kind", "sample"), CASES)
def test_integers_are_refused_or_kept(kind: type[Operation], sample: Sample) -> None:
    inputs = [Tensor.new(np.ones(shape), dtype=DType.I32) for shape in sample.shapes]
    for place, _ in sample.ids:
        inputs[place] = Tensor.new(arrays(sample)[place])
    refusal = None
    try:
        dtype = run(of(kind, sample), inputs).dtype
    except mc.Error as error:
        refusal = error
    if refusal is None:
        assert dtype in (DType.I32, DType.U8, DType.U32, DType.F16)
    else:
        assert isinstance(refusal, TypeError)
        assert "i32" in str(refusal)
