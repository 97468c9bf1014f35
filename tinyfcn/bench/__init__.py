"""How fast: training steps and kernels, beside PyTorch's, checked to be right before they are timed.

run.py says what is measured in which order; steps.py has our side of a step, parts.py takes a step apart and times its
parts; pytorch.py has PyTorch's side of both; roofline.py says what a kernel could do at best.
"""
