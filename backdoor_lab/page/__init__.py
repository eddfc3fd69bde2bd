"""Writes the HTML page of a sweep, and the tables next to its records."""
