"""Numerical methods on arrays, independent of attacks and defenses."""
