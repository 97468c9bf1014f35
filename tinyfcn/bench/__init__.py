"""How fast: training steps and kernels, beside PyTorch's, checked to be right before they are timed.

run.py says what is measured in which order; agreement.py compares steps, parts.py times the parts of one; pytorch.py
has PyTorch's side of both; peaks.py measures what a GPU reaches at best; report.py and plots.py say it in words.
"""
