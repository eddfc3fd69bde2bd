"""Benchmarks: `make bench`, or `make bench BENCH=resume`. Figures are shown with their targets;
nothing is asserted."""
