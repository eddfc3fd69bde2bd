"""Helpers shared by several test modules: made-up records, tiny cells, image files."""
