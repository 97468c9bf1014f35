"""Every operation in NumPy, under its name and with its signature in `tinyfcn.ops`: the kernels are held against it.

Plain formulas, exact in float64, which also train where there is no GPU. `tinyfcn.on("cpu")` offers them all.
"""
