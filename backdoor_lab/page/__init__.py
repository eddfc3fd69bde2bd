"""Writes the HTML page and the table files of a sweep."""
