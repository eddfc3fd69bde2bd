"""Cells: their identity, their stages, the chain through them, and whole grids of them."""
