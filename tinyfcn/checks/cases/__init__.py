"""One module for each operation: the inputs on which gradcheck and sanitize run its kernels.

    gradcheck_cases(random)   fixed sizes; gradients are checked by finite differences, kernels against the reference
    sanitize_cases(random)    small random shapes; every kernel of the operation's file runs on some of them

Both take a NumPy generator and return a list of `tinyfcn.checks.case.Case`, which may be empty.
"""
