"""One HTML page for each sweep, and the files that are written next to its records."""
