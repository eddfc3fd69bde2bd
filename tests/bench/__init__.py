"""Benchmarks: run `make bench`, or one of them with `make bench BENCH=resume`. They show figures
with targets and assert nothing."""
