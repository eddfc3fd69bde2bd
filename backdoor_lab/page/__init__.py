"""The HTML page of a sweep, and the files written next to its records."""
