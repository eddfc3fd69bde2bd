"""Compares two sweeps, or a sweep with the reproduced report, cell by cell."""
