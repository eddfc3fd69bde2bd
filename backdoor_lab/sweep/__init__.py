"""Whole grids of cells: which ones, what they cost, how they are run and watched."""
