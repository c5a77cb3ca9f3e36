"""``import metal_candle`` brings MLX and NumPy, and nothing that only some uses need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ["tokenizers", "jinja2", "matplotlib", "rich", "typer", "safetensors", "yaml", "huggingface_hub", "asyncio"]


def modules_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package() -> None:
    assert modules_after("import metal_candle") == set()


def test_using_tensors_layers_and_compile() -> None:
    code = (
        "import metal_candle as mc\n"
        "w = mc.Var.randn(0.0, 1.0, (3, 2))\n"
        "f = mc.compile(lambda x: mc.nn.Linear(w).forward(x).sum_all().backward()[w])\n"
        "assert f(mc.Tensor.ones((4, 2))).dims() == [3, 2]\n"
        "assert mc.graph.ComputationGraph(mc.LazyTensor.new(1.0)).nodes()\n"
    )
    assert modules_after(code) == set()


def test_every_public_name_resolves() -> None:
    import metal_candle

    for name in metal_candle.__all__:
        assert getattr(metal_candle, name) is not None
    assert set(metal_candle.__all__) <= set(dir(metal_candle))
    # Found by completion, but not by `import *`, which must not hide Python's own.
    assert {"compile", "pickle"} <= set(dir(metal_candle)) - set(metal_candle.__all__)
    assert {"AsyncExecutor", "ComputationGraph", "eval_all"} <= set(metal_candle.__all__)
