"""What is in a model file, before and after it is loaded: configuration, tensors, checks, the network.

python examples/load_model.py [path]

Without a path, a small Qwen is written to a temporary folder first. ``metal_candle.models.load_model(path)`` does all
of it at once, tokenizer included, for every architecture and for GGUF files. metal-candle (Rust): load_model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from metal_candle import Device, DType, Error
from metal_candle.models import ModelConfig, ModelLoader, Qwen
from metal_candle.nn import VarBuilder, VarMap

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("path", nargs="?", type=Path, help="a Hugging Face folder of a Qwen")
arguments = parser.parse_args()


def write_small_qwen(folder: Path) -> None:
    """Random weights and their config.json, as a downloaded model has them."""
    config = ModelConfig(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    (folder / "config.json").write_text(config.to_json(), "utf-8")
    varmap = VarMap()
    Qwen(config, VarBuilder.from_varmap(varmap, DType.F32))  # a builder over a VarMap makes what is asked for
    varmap.save(folder / "model.safetensors")


with tempfile.TemporaryDirectory() as temporary:
    folder = arguments.path or Path(temporary)
    if arguments.path is None:
        write_small_qwen(folder)

    device = Device.new_with_fallback(0)
    print(device.info())
    config = ModelConfig.from_file(folder / "config.json")
    config.validate()
    print(f"{config.architectures}: {config.num_hidden_layers} layers, head_dim {config.head_dim()}")

    # Names and shapes: only headers are read. A path is a file, an index, or a folder of several files.
    loader = ModelLoader(device).with_dtype(DType.F16)
    shapes = loader.inspect(folder)
    for name in sorted(shapes)[:4]:
        print(f"{name} {tuple(shapes[name])}")
    print(f"and {len(shapes) - 4} more")

    # What has to be there, checked before anything is loaded.
    expected = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    tensors = loader.load_with_validation(folder, expected)
    print(f"{len(tensors)} tensors of {tensors['model.norm.weight'].dtype}")
    try:
        loader.load_with_validation(folder, {"model.embed_tokens.weight": (config.vocab_size, 1)})
    except Error as error:
        print(f"{type(error).__name__}: {error}")

    model = Qwen(config, VarBuilder.from_tensors(tensors, DType.F32, device))
    print(f"{type(model).__name__} of {model.num_parameters():,} numbers")
