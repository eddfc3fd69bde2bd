"""Sweeps, that is grids of cells: checking, estimating, running and monitoring them."""
