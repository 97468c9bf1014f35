"""Is a kernel right? Inputs for every operation, and the checks that run the kernels on them."""
