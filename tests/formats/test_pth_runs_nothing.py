"""Checkpoints made to run something: nothing in them is called, and what they refer to is named."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import PthError
from metal_candle.pickle import read_all

import pytest
from hostile_pth import checkpoint, dictionary, numbers, tensor, text


class Calls:
    """Pickles as a call of ``function`` with these arguments."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Restored:
    """Pickles as an object with a state, which Python's unpickler would give to ``__setstate__``."""

    def __setstate__(self, state: Any) -> None:
        Path(state["path"]).touch()


def restored(canary: str) -> Any:
    value = Restored()
    value.path = canary  # type: ignore[attr-defined]
    return value


HARM: dict[str, Callable[[str], Any]] = {
    "os.system": lambda canary: Calls(__import__("os").system, f"touch {canary}"),
    "eval": lambda canary: Calls(eval, f"open({canary!r}, 'w')"),
    "exec": lambda canary: Calls(exec, f"open({canary!r}, 'w')"),
    "open": lambda canary: Calls(open, canary, "w"),
    "subprocess": lambda canary: Calls(subprocess.call, ["touch", canary]),
    "getattr": lambda canary: Calls(getattr, Path(canary), "touch"),
    "state": restored,
    "nested": lambda canary: {"a": [(OrderedDict(b=Calls(exec, f"open({canary!r}, 'w')")),)]},
    "key": lambda canary: {Calls(eval, f"open({canary!r}, 'w')"): 1},
    "import": lambda canary: Calls(__import__, "antigravity"),
    "type": lambda canary: Calls(type, "x", (), {}),
}


def test_python_would_run_them(tmp_path: Path) -> None:
    """The test below can fail: its pickles do what they say."""
    for harm in ("os.system", "subprocess", "state"):
        pickle.loads(pickle.dumps(HARM[harm](str(tmp_path / harm))))
        assert (tmp_path / harm).exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("harm", HARM)
def test_nothing_of_a_hostile_pickle_runs(tmp_path: Path, harm: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    try:
        description = pickle.dumps({"w": HARM[harm](str(canary))}, protocol)
    except TypeError:  # a key that older protocols cannot hash
        pytest.skip("cannot be pickled so")
    if canary.exists():
        canary.unlink()
    before = set(sys.modules)
    with pytest.raises(PthError, match=r"a\.pth: its pickle, at byte \d+: (refers to|opcode)"):
        read_all(checkpoint(tmp_path / "a.pth", description))
    assert not canary.exists()
    assert set(sys.modules) - before <= {"encodings.cp437", "encodings.unicode_escape"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os\nsystem", r"refers to os\.system, which is not read"),
        ("posix\nsystem", r"refers to posix\.system"),
        ("builtins\neval", r"refers to builtins\.eval"),
        ("__builtin__\neval", r"refers to __builtin__\.eval"),
        ("torch\nload", r"refers to torch\.load"),
        ("torch._utils\n_rebuild_tensor_v2.__globals__", r"refers to torch\._utils\._rebuild_tensor_v2\.__globals__"),
        ("torch.hub\nload", r"refers to torch\.hub\.load"),
        ("torch.serialization\nload", r"refers to torch\.serialization\.load"),
        ("metal_candle.formats.pth\nReader", "refers to metal_candle"),
        ("a\x07\nb", r"refers to a\\x07\.b"),
    ],
)
def test_globals_off_the_list_are_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(PthError, match=message) as raised:
        read_all(checkpoint(tmp_path / "a.pth", b"\x80\x02c" + name.encode() + b"\n."))
    assert "\n" not in str(raised.value)
    module, _, attribute = name.partition("\n")
    with pytest.raises(PthError, match=message):
        read_all(checkpoint(tmp_path / "b.pth", b"\x80\x04" + text(module) + text(attribute) + b"\x93."))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        # Calls of what only stands for itself, and of what is no function at all.
        (b"ctorch\nFloatStorage\n)R.", "calls something that is no function of the list"),
        (b"ctorch\nfloat32\n)R.", "calls something that is no function"),
        (text("os.system") + text("true") + b"\x85R.", "calls something that is no function"),
        (tensor() + b")R.", "calls something that is no function"),
        (b"ccollections\nOrderedDict\n]R.", "calls something that is no function"),
        (b"ccollections\nOrderedDict\n(]tR.", "an OrderedDict made of arguments"),
        # States for what has none: __setstate__, __dict__ and slots are out of reach.
        (tensor() + b"}b.", "fills something that is no list or dictionary"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"Nsb.", "fills something"),
        (b"ctorch\nfloat32\n(N}tb.", "fills something"),
        (b"N}b.", "fills something"),
        # The opcodes that make objects by other ways.
        (b"ccollections\nOrderedDict\n)\x81.", "makes an object of something that is no class of the list"),
        (b"ccollections\nOrderedDict\n)}\x92.", "makes an object of something"),
        (text("os.system") + b")\x81.", "makes an object of something"),
        (b"(ccollections\nOrderedDict\no.", "opcode b'o'"),
        (b"(icollections\nOrderedDict\n.", "opcode b'i'"),
        (b"\x82\x01.", r"opcode b'\\x82'"),
        (b"Pstorage\n.", "opcode b'P'"),
        (b"S'os'\n.", "opcode b'S'"),
        (b"\x98.", r"opcode b'\\x98'"),
        # References to other things than storages.
        (text("os.system") + b"Q.", "a reference to something else than a storage"),
        (numbers(1, 2, 3, 4, 5) + b"Q.", "a reference to something else than a storage"),
        (b"(" + text("module") + b"NNNNtQ.", "a reference to something else"),
        (b"(" + text("storage") + b"ccollections\nOrderedDict\n" + text("0") + text("cpu") + b"K\1tQ.", "of kind"),
        (
            b"(" + text("storage") + b"ctorch\nFloatStorage\nK\0" + text("cpu") + b"K\1tQ.",
            "a storage of other arguments",
        ),
        # A machine out of step.
        (b"", "truncated"),
        (b"N", "truncated"),
        (b".", "takes a value where there is none"),
        (b"NN.", "ends with values left over"),
        (b"(N.", "ends with values left over"),
        (b"t.", "up to a mark where there is none"),
        (b"0.", "up to a mark where there is none"),
        (b"h\0.", "recalls a value that it never had"),
        (b"q\0N.", "remembers a value where there is none"),
        (b"}(Nu.", "key without a value"),
        (b"NNa.", "fills something that is no list"),
        (b"\x80\x06.", "a later protocol than 5"),
        (b"X\xff\xff\xff\xff.", "truncated"),
        (b"\x8d" + b"\xff" * 8 + b".", "truncated"),
        (b"\x8b\xff\xff\xff\xff.", "an integer of 4294967295 bytes"),
        (b"X\1\0\0\0\xff.", "a text that is none"),
        (b"cos", "truncated"),
        (b"c\xff\nx\n.", "a text that is none"),
        (b"NN\x93.", "a global whose name is no text"),
    ],
)
def test_pickles_that_no_checkpoint_has(tmp_path: Path, description: bytes, message: str) -> None:
    with pytest.raises(PthError, match=message):
        read_all(checkpoint(tmp_path / "a.pth", description))


@pytest.mark.parametrize(
    "name",
    [
        *("os\nPathLike", "subprocess\nPopen", "sys\nexit", "socket\nsocket", "runpy\nrun_path", "nt\nsystem"),
        *("builtins\ngetattr", "builtins\ncompile", "builtins\n__import__", "builtins\ntype", "functools\npartial"),
        *(
            "torch.storage\n_load_from_bytes",
            "torch.os\nsystem",
            "numpy\nload",
            "pathlib\nos.system",
            "collections\nsys",
        ),
        *("torchx\nSize", "numpy.testing._private.utils\nruncstring", "typing\n__builtins__", "copyreg\n__reduce_ex__"),
    ],
)
def test_dangerous_names_stay_loud(tmp_path: Path, name: str) -> None:
    value = b"c" + name.encode() + b"\n)R"
    with pytest.raises(PthError, match=r"refers to .*, which is not read") as raised:
        read_all(checkpoint(tmp_path / "a.pth", dictionary(w=tensor(), a=value)))
    assert name.replace("\n", ".") in str(raised.value)
