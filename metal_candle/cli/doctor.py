"""``metal-candle doctor``: what this machine computes with, and the one command that would help."""

from __future__ import annotations

import platform
from importlib.metadata import version


def doctor() -> None:
    """Show the device, MLX and the BLAS with a measured figure, and what would make it faster.

    Example: metal-candle doctor
    """
    import mlx.core as mx

    from .. import blas
    from ..device import Device
    from ..version import VERSION
    from .measure import measure_matmul
    from .options import print_table

    device = Device.default()
    status = blas.status()
    speed = measure_matmul()
    found = f"{status.found}: {status.path}" if status.path else status.found
    print_table(
        [
            ("metal-candle", VERSION),
            ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
            ("MLX", f"{version('mlx')}, Metal {_yes(mx.metal.is_available())}, CUDA {_yes(mx.cuda.is_available())}"),
            ("device", device),
            ("BLAS", found + (f" ({status.reason})" if status.reason else "")),
            ("matmul", f"{speed:.0f} GFLOP/s, float32, 512 x 512 x 512, measured now"),
        ]
    )
    if status.advice:
        print(f"\nfaster with: {status.advice}")
    elif device.is_cpu() and platform.system() == "Linux" and speed < 20:
        print("\nslow for a CPU: is another process busy, or METAL_CANDLE_BLAS=off set?")
    else:
        print("\nnothing to improve")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
