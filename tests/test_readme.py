"""README's Python runs, block after block in one program: as it stands, but for the number of updates."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.S)
    assert len(blocks) == 2
    whole = "\n".join(blocks)
    assert whole.count("max_steps=72") == whole.count("max_tokens=60") == 1
    program = tmp_path / "readme.py"
    program.write_text(whole.replace("max_steps=72", "max_steps=2").replace("max_tokens=60", "max_tokens=3"), "utf-8")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").exists()
    assert re.search(r"^1 \d\.\d+\n2 \d\.\d+$", done.stdout, flags=re.M)
