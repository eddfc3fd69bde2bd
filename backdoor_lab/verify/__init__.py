"""Measures what the card of a network or of a poisoned data set claims."""
