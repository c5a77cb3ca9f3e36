"""Names that a PyTorch checkpoint may refer to beside those of tensors: they are recorded, and lead nowhere.

A checkpoint holds more than tensors: settings, counters, paths, NumPy's numbers. What stands here is read as a value
without content. What does not, ``os.system`` say, makes the whole file refused: it is no mistake that it is there.
"""

from __future__ import annotations

# Packages whose classes are read so. A class is what begins with a capital; their functions, ``torch.load`` say, are
# refused but for those below.
_PACKAGES = frozenset({"torch", "numpy", "collections", "argparse", "pathlib", "datetime", "typing"})
_BUILTINS = frozenset(
    {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object"),
        *("range", "set", "slice", "str", "tuple", "unicode", "xrange"),
    }
)
_ARRAYS = frozenset({"_reconstruct", "scalar"})
_NUMBERS = frozenset(
    {
        *("bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "intc", "uintc"),
        *("longlong", "ulonglong", "float16", "float32", "float64", "longdouble", "complex64", "complex128"),
        *("str_", "bytes_", "void", "object_", "datetime64", "timedelta64", "dtype", "ndarray"),
    }
)
_EXACT = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "copyreg": frozenset({"_reconstructor"}),
    "copy_reg": frozenset({"_reconstructor"}),
    "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
    "numpy": _NUMBERS,
    "numpy.core.multiarray": _ARRAYS,
    "numpy._core.multiarray": _ARRAYS,
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "numpy.random._pickle": frozenset({"__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"}),
    "torch": frozenset(
        {
            *("device", "channels_last", "channels_last_3d", "contiguous_format", "preserve_format"),
            *("per_channel_affine", "per_tensor_affine", "per_tensor_symmetric", "per_channel_symmetric"),
        }
    ),
    "torch.serialization": frozenset({"_get_layout"}),
}
_MODULES_WITH_TENSORS = "torch.nn.modules."
_REBUILDING = ("torch._utils", "torch._tensor")


def is_inert(module: str, name: str) -> bool:
    """Whether a name may be recorded as a value without content."""
    if not name.isidentifier():
        return False
    if name in _EXACT.get(module, ()) or module == "torch.nn.functional" or makes_tensor(module, name):
        return True
    return module.partition(".")[0] in _PACKAGES and name.lstrip("_")[:1].isupper()


def makes_tensor(module: str, name: str) -> bool:
    """Whether a name makes a tensor or a module of tensors: passing it over would lose numbers."""
    return is_module(module, name) or (module in _REBUILDING and name.startswith("_rebuild_"))


def is_module(module: str, name: str) -> bool:
    """Whether a name is a class of neural networks."""
    return module.startswith(_MODULES_WITH_TENSORS) and name[:1].isupper()
