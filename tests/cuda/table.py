"""Prints what every instantiation of our kernels uses of an NVIDIA GPU: ``python tests/cuda/table.py [program …]``.

Needs what ``test_nvrtc.py`` needs, and no GPU.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(names: list[str]) -> None:
    """Print the table of these programs, or of all."""
    # Outside of pytest the folder of the tests of kernels has to be named first.
    sys.path.append(str(Path(__file__).parents[1] / "kernels"))
    import limits
    from compilation import HOPPER, available, compiler
    from cuda_text import text_of
    from instantiations import instantiations

    present, reason = available()
    if not present:
        raise SystemExit(reason)
    chosen = [each for each in instantiations() if not names or each.program.name in names]
    start = time.perf_counter()
    with compiler() as compiling:
        found = compiling.compile_all([text_of(each.program, each.given, each.how) for each in chosen])
    print(f"{len(chosen)} instantiations for {HOPPER}: {time.perf_counter() - start:.0f} s")
    print(f"{'program and template arguments':44} threads registers shared stack spilled occupancy")
    for each, compiled in sorted(zip(chosen, found), key=lambda pair: str(pair[0])):
        x, y, z = each.how.threadgroup
        used = f"{x * y * z:7} {compiled.registers:9} {compiled.shared:6} {compiled.stack:5} {compiled.spilled:7}"
        print(f"{each!s:44} {used} {limits.occupancy(compiled, x * y * z):9.0%} {compiled.said}".rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
