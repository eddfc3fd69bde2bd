"""Measures backdoor attacks by data poisoning, and the defenses against them."""

__version__ = "0.1.0"
