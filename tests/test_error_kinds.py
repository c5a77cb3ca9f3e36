"""Errors as objects: what goes to another process and back is the same error."""

from __future__ import annotations

import copy
import pickle

from metal_candle import error as kinds
from metal_candle.error import DataError, DeviceError, Error, InvalidIndexError, NotFoundError, TrainingError

import pytest

ERRORS = [
    Error("plain"),
    TrainingError.Failed(reason="loss is nan"),
    DataError.InvalidLine(path="a.jsonl", line=3, reason="no object"),
    DeviceError.AllocationFailed(requested_bytes=5),
    DeviceError.AllocationFailed(requested_bytes=5, what=" for zeros"),
    InvalidIndexError("embedding", 5, 3),
    NotFoundError("there"),
    NotFoundError("there").context("while loading"),
    DeviceError.AllocationFailed(requested_bytes=5).with_path("a.gguf"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_an_error_is_copied_and_sent_as_it_is(error: Error) -> None:
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


def test_every_kind_is_found_by_its_name() -> None:
    found = [kind for kind in vars(kinds).values() if isinstance(kind, type) and issubclass(kind, Error)]
    variants = [each for kind in found for each in vars(kind).values() if isinstance(each, type)]
    assert len(found) > 20
    assert len(variants) > 30
    for kind in (*found, *variants):
        assert pickle.loads(pickle.dumps(kind)) is kind
