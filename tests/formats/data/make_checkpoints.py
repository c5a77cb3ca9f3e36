"""Writes the checkpoints beside this file. Needs PyTorch: ``python make_checkpoints.py``."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter, defaultdict, deque
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


def main() -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    dtypes = {
        str(dtype).removeprefix("torch."): (torch.arange(6) % 2 if dtype is torch.bool else torch.arange(6)).to(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
            *(torch.int64, torch.int32, torch.int16, torch.uint32, torch.uint8, torch.bool),
        )
    }
    strided = {
        "whole": base,
        "transposed": base.transpose(0, 2),
        "part": base[1, 1:, 1:3],
        "steps": base.flatten()[3::5],
        "expanded": base[0, 0, :1].expand(3, 5),
        "scalar": base[1, 2, 3],
        "empty": torch.zeros(3, 0),
        "parameter": torch.nn.Parameter(base[0]),
    }
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    nested = {
        "epoch": 3,
        "rate": 0.5,
        "name": "tiny",
        "bytes": b"xy",
        "set": {1, 2},
        "shape": base.shape,
        "device": torch.device("cpu"),
        "state_dict": module.state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "groups": [{"lr": 0.1, "params": [0]}]},
        "list": [base[0, 0], None, (base[0, 1],)],
    }
    parameter = torch.nn.Parameter(torch.tensor([6.0, 7.0]))
    parameter.tag = "kept by torch"  # _rebuild_parameter_with_state
    first = torch.arange(8, dtype=torch.float32).reshape(4, 2)
    ones = torch.arange(8, dtype=torch.float32).reshape(8, 1)
    default = defaultdict(list)
    default["a"] = first[0].clone()
    settings = {
        "args": Namespace(lr=0.5, steps=[1, 2]),
        "counter": Counter("aab"),
        "default": default,
        "deque": deque([first[1].clone()]),
        "numbers": [np.float64(1.5), np.int64(3), np.bool_(True), np.arange(3), np.dtype("float32")],
        "complex": 1 + 2j,
        "sets": [frozenset({1}), {2}],
        "torch": [torch.Size([2]), torch.device("cpu"), torch.float16, torch.strided],
        "paths": [PurePosixPath("a/b"), datetime(2020, 1, 2), timedelta(3), timezone.utc],
        "types": [dict, Any, 2**100, range(3), slice(1), bytearray(b"x"), torch.__version__],
        "buffer": torch.nn.Buffer(torch.tensor([4.0, 5.0])),
        "parameter": parameter,
        "keys": dict(zip([(1, 2), None, 1.5, -3, True, b"x", ("a", (None, 0.5)), torch.device("cpu")], ones)),
    }
    for name, protocol in (("settings.pth", 2), ("settings4.pth", 4)):
        torch.save(settings, HERE / name, pickle_protocol=protocol)
    sparse = torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (2, 2))
    torch.save({"sparse": sparse, "w": base[0, 0].clone()}, HERE / "sparse.pth")
    torch.save(dtypes, HERE / "dtypes.pth")
    torch.save(strided, HERE / "strided.pth")
    torch.save(nested, HERE / "nested.pth")
    torch.save(module.state_dict(), HERE / "protocol4.pth", pickle_protocol=4)
    torch.save({"w": base}, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"w": base.to(torch.int8), "x": base}, HERE / "int8.pth")
    torch.save(torch.nn.Linear(2, 2), HERE / "module.pth")


if __name__ == "__main__":
    main()
