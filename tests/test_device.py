"""Devices: what is there, what is not and says so, names, locations, seeds."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import Device, DeviceInfo, DeviceType, DType, error
from metal_candle.device import DeviceLocation

import mlx.core as mx
import numpy as np
import pytest

METAL, CUDA = Device(DeviceType.Metal, 0), Device(DeviceType.Cuda, 1)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes MLX say that it has so many GPUs of a kind."""

    def pretend(kind: str, count: int) -> None:
        monkeypatch.setattr(mx.metal, "is_available", lambda: kind == "metal" and count > 0)
        monkeypatch.setattr(mx.cuda, "is_available", lambda: kind == "cuda" and count > 0)
        monkeypatch.setattr(mx, "device_count", lambda _: count)

    return pretend


def test_the_cpu() -> None:
    cpu = Device.new_cpu()
    assert cpu is Device.Cpu
    assert (cpu.is_cpu(), cpu.is_metal(), cpu.is_cuda()) == (True, False, False)
    assert cpu.location() == DeviceLocation.Cpu
    assert (str(cpu.location()), repr(cpu.location()), repr(cpu)) == ("cpu", "DeviceLocation.Cpu", "Device.Cpu")
    assert cpu.info() == DeviceInfo(DeviceType.Cpu, 0, Device.is_metal_available())
    assert cpu.mlx() == mx.cpu
    assert pickle.loads(pickle.dumps(cpu)) == cpu
    assert cpu.supports_bf16() is False
    assert cpu.bf16_default_to_f32() is DType.F32
    assert cpu.with_context(lambda: 3) == 3
    cpu.synchronize()


def test_gpus_as_values() -> None:
    assert (METAL.is_metal(), METAL.is_cuda(), CUDA.is_cuda(), CUDA.is_cpu()) == (True, False, True, False)
    assert METAL.location() == DeviceLocation.Metal(0) != DeviceLocation.Metal(1)
    assert CUDA.location() == DeviceLocation.Cuda(gpu_id=1) != METAL.location()
    assert (str(METAL.location()), str(CUDA.location())) == ("metal:0", "cuda:1")
    assert (repr(METAL), repr(CUDA.location())) == ("Device.Metal(0)", "DeviceLocation.Cuda(1)")
    assert CUDA.same_device(Device(DeviceType.Cuda, 1))
    assert not CUDA.same_device(Device(DeviceType.Cuda, 0))
    assert not METAL.same_device(Device.Cpu)
    assert METAL.supports_bf16()
    assert CUDA.bf16_default_to_f32() is DType.BF16
    assert METAL.as_metal_device() is METAL
    assert CUDA.as_cuda_device() is CUDA
    with pytest.raises(mc.Error, match=re.escape("as_cuda_device: got Device.Metal(0); takes a CUDA device")):
        METAL.as_cuda_device()
    with pytest.raises(mc.Error, match=re.escape("as_metal_device: got Device.Cpu; takes a Metal device")):
        Device.Cpu.as_metal_device()


def test_a_device_is_made_of_a_kind_not_of_a_name() -> None:
    with pytest.raises(mc.Error, match=re.escape("Device: got 'cpu' for a kind; takes a DeviceType, Device.of reads")):
        Device("cpu")  # type: ignore[arg-type]


def test_without_a_gpu(gpus: Any) -> None:
    gpus("metal", 0)
    for index in (0, 7):
        assert Device.metal_if_available(index) is Device.cuda_if_available(index) is Device.Cpu
        assert Device.new_with_fallback(index) is Device.Cpu
    for call, kind in [
        (Device.new_metal, error.DeviceError.MetalUnavailable),
        (Device.new_cuda, error.DeviceError.CudaUnavailable),
        (Device.new_cuda_with_stream, error.DeviceError.CudaUnavailable),
    ]:
        with pytest.raises(kind, match="device not available: MLX has no"):
            call(0)
    with pytest.raises(error.DeviceError.MetalUnavailable):
        Device.of("metal")
    with pytest.raises(error.DeviceError.CudaUnavailable):
        Device.of("cuda:0")
    with pytest.raises(error.DeviceError.CudaUnavailable):
        Device.of(mx.gpu)


def test_with_metal(gpus: Any) -> None:
    gpus("metal", 1)
    assert Device.new_metal(0) == Device.metal_if_available(0) == Device.new_with_fallback(0) == METAL
    assert Device.of("metal") == Device.of("metal:0") == Device.of(mx.gpu) == Device.of(METAL) == METAL
    assert Device.cuda_if_available(0) is Device.Cpu
    assert Device.new_with_fallback(1) is Device.Cpu
    for index in (1, -1, 0.0, False):
        with pytest.raises(error.DeviceError.MetalUnavailable, match=f"got index {index}; takes 0$"):
            Device.new_metal(index)  # type: ignore[arg-type]


def test_with_two_cuda_gpus(gpus: Any) -> None:
    gpus("cuda", 2)
    assert Device.new_cuda(1) == Device.new_cuda_with_stream(1) == Device.of("cuda:1") == CUDA
    assert Device.new_with_fallback(0) == Device.of("cuda") == Device(DeviceType.Cuda, 0)
    assert Device.metal_if_available(0) is Device.Cpu
    with pytest.raises(error.DeviceError.CudaUnavailable, match="got index 2; takes 0 to 1"):
        Device.of("cuda:2")


def test_what_is_read_as_a_device() -> None:
    for value in (Device.Cpu, "cpu", "cpu:0", mx.cpu, mx.Device(mx.cpu)):
        assert Device.of(value) is Device.Cpu  # type: ignore[arg-type]
    assert Device.of(None) == Device.default()
    for name in ("", "CPU", "tpu", "cpu:1", "cuda:", "cuda:-1", "cuda:x", "metal:1:2"):
        with pytest.raises(mc.Error, match=re.escape(f"device: cannot read {name!r}; takes a Device or its name")):
            Device.of(name)
    with pytest.raises(mc.Error, match="device: got 0; takes a Device or its name"):
        Device.of(0)  # type: ignore[arg-type]


def test_the_seed_is_remembered_and_repeats_the_numbers() -> None:
    for seed in (0, 299792458, 2**64 - 1, np.uint64(7)):
        Device.Cpu.set_seed(seed)  # type: ignore[arg-type]
        assert Device.Cpu.get_current_seed() == METAL.get_current_seed() == int(seed)
        first = mc.Tensor.randn(0.0, 1.0, (4,)).to_vec1()
        second = mc.Tensor.randn(0.0, 1.0, (4,)).to_vec1()
        Device.Cpu.set_seed(int(seed))
        assert mc.Tensor.randn(0.0, 1.0, (4,)).to_vec1() == first != second


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1", None])
def test_what_is_no_seed(seed: Any) -> None:
    Device.Cpu.set_seed(5)
    text = re.escape(f"set_seed: got {seed!r}; takes an integer from 0 to 2^64 - 1")
    with pytest.raises(mc.Error, match=text):
        Device.Cpu.set_seed(seed)
    assert Device.Cpu.get_current_seed() == 5


def test_each_thread_has_its_own_seed() -> None:
    """As MLX has a generator per thread: seeding in one leaves the others' numbers alone."""
    Device.Cpu.set_seed(1)
    Device.Cpu.set_seed(1)
    expected = [mc.Tensor.rand(0.0, 1.0, (2,)).to_vec1() for _ in range(2)]
    Device.Cpu.set_seed(1)
    seen: list[Any] = [mc.Tensor.rand(0.0, 1.0, (2,)).to_vec1()]

    def work() -> None:
        try:
            Device.Cpu.get_current_seed()
        except mc.Error as failure:
            seen.append(str(failure))
        Device.Cpu.set_seed(2)
        seen.append(Device.Cpu.get_current_seed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    seen.append(mc.Tensor.rand(0.0, 1.0, (2,)).to_vec1())
    text = "get_current_seed: set_seed was not called in this thread, so MLX chose the seed itself"
    assert seen == [expected[0], text, 2, expected[1]]
    assert Device.Cpu.get_current_seed() == 1
