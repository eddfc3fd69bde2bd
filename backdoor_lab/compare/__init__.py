"""Two sweeps, or a sweep and the report, cell by cell."""
