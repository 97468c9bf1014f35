"""Checks of the kernels: gradcheck and sanitize, and the inputs of every operation on which they run."""
