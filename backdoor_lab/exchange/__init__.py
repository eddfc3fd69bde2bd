"""Poisoned data sets in files: what this package writes, and what other projects write."""
