"""Numerical methods that know nothing of attacks or defenses: arrays in, arrays out."""
