"""Ways to study the kernels."""
