"""Writes the checkpoints beside this file. Needs PyTorch: ``python make_checkpoints.py``."""

from __future__ import annotations

from pathlib import Path

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
    torch.save(dtypes, HERE / "dtypes.pth")
    torch.save(strided, HERE / "strided.pth")
    torch.save(nested, HERE / "nested.pth")
    torch.save(module.state_dict(), HERE / "protocol4.pth", pickle_protocol=4)
    torch.save({"w": base}, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"w": base.to(torch.int8), "x": base}, HERE / "int8.pth")
    torch.save(torch.nn.Linear(2, 2), HERE / "module.pth")


if __name__ == "__main__":
    main()
