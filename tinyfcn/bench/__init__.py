"""How fast: training steps and kernels, beside PyTorch's, checked to be right before they are timed.

run.py says what is measured in which order; steps.py and torch_steps.py have the two sides of a step, kernels.py and
torch_kernels.py those of each kernel; resources.py says what a kernel could do at best, ceilings.py measures it.
"""
