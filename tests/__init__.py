"""Tests, benchmarks, and shared helpers."""
