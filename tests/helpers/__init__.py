"""Shared by several tests: made-up records, tiny cells, image files."""
