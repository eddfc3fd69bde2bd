"""Benchmarks: `make bench`, or `make bench BENCH=resume`. Figures beside targets, no assertions."""
