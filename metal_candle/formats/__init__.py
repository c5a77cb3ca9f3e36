"""Files of tensors as bytes and NumPy arrays: no tensors, no MLX."""
