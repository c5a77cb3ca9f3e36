"""``metal-candle doctor``: what this machine computes with, and the one command that would help."""

from __future__ import annotations

import platform
import sys


def doctor() -> None:
    """Show the device, MLX and the BLAS with a measured figure, and what would make it faster.

    Example: metal-candle doctor
    """
    import mlx.core as mx
    from rich.console import Console
    from rich.table import Table

    from .. import __version__, blas
    from ..device import Device
    from .measure import measure_matmul

    device = Device.default()
    status = blas.status()
    speed = measure_matmul()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("metal-candle", __version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    table.add_row(
        "MLX", f"{mx.__version__}, Metal {_yes(mx.metal.is_available())}, CUDA {_yes(mx.cuda.is_available())}"
    )
    table.add_row("device", str(device))
    found = f"{status.found}: {status.path}" if status.path else status.found
    table.add_row("BLAS", found + (f" ({status.reason})" if status.reason else ""))
    table.add_row("matmul", f"{speed:.0f} GFLOP/s, float32, 512 x 512 x 512, measured now")
    console = Console(soft_wrap=True, highlight=False, no_color=not sys.stdout.isatty())
    console.print(table)
    if status.advice:
        console.print(f"\nfaster with: {status.advice}", markup=False)
    elif device.is_cpu() and speed < 20 and platform.system() == "Linux":
        console.print("\nslow for a CPU: is another process busy, or METAL_CANDLE_BLAS=off set?")
    else:
        console.print("\nnothing to improve")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
