"""Draws the pictures of the documents, with `make pictures`."""
