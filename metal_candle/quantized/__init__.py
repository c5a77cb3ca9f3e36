"""Quantised tensors, products with them, and their files. candle: ``candle_core::quantized``."""

from . import ggml_file, gguf_file, imatrix_file
from .ggml_dtype import GgmlDType
from .qmatmul import QMatMul
from .qtensor import QTensor

__all__ = ["GgmlDType", "QMatMul", "QTensor", "ggml_file", "gguf_file", "imatrix_file"]
