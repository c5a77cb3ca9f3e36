"""Language models of mlx-lm as bases: adapted, trained and generated with as a ``Decoder`` is.

Needs the extra: ``pip install "metal-candle[mlx-lm]"``.
"""

from .load import load_mlx_lm
from .model import MlxLmModel

__all__ = ["MlxLmModel", "load_mlx_lm"]
