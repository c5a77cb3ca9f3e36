"""``python -m metal_candle``: the command line."""

from .cli import main

main()
