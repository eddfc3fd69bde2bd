"""Measures data-poisoning backdoor attacks on image classifiers, and defenses against them."""

__version__ = "0.2.0"
