"""Files of tensors as bytes, NumPy and MLX arrays and metadata, and back; nothing here knows tensors."""
