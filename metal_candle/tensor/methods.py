"""``TensorMethods``: what the records give. Its types are in ``methods.pyi``, which ``stub.py`` writes."""

from __future__ import annotations

from .derive import method_table, operator_table
from .python import PythonProtocols


class TensorMethods(PythonProtocols):
    """The methods that the records give, on top of what every tensor has."""

    __slots__ = ()


for _name, _function in ({name: each for name, (_, each) in method_table().items()} | operator_table()).items():
    # Where pickle looks for ``Tensor.relu``.
    _function.__module__, _function.__qualname__ = __name__, f"{TensorMethods.__name__}.{_name}"
    setattr(TensorMethods, _name, _function)
# Python drops __hash__ from a class that defines __eq__; comparing gives a tensor, hashing is by identity.
TensorMethods.__hash__ = PythonProtocols.__hash__  # type: ignore[method-assign]
