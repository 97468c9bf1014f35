"""Every operation in NumPy, with the name and signature of `tinyfcn.ops`. Kernels are compared with these functions.

They are plain formulas, exact in float64, and also train networks where there is no GPU. `tinyfcn.on("cpu")` has all.
"""
