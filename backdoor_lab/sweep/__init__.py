"""Checks, estimates, runs and monitors sweeps. A sweep is a grid of cells."""
