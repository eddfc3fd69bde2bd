"""Benchmarks: `make bench`, or `make bench BENCH=resume`. Ratios and counts, never assertions."""
