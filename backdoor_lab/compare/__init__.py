"""Compares two sweeps, or a sweep with the published report, cell by cell."""
