"""Language models of mlx-lm as bases: adapted, trained and generated with as a ``Decoder`` is.

Needs the extra: ``pip install "metal-candle[mlx-lm]"``.
"""

from .load import load_mlx_lm
from .model import MlxLmModel
from .save import save_mlx_lm

__all__ = ["MlxLmModel", "load_mlx_lm", "save_mlx_lm"]
