"""Draws figures of sweeps and of single cells: `python -m backdoor_lab.figures`.

Each figure is a function from NumPy arrays to a matplotlib Figure. Only this package imports
matplotlib, and it never imports torch.
"""
