"""Builds tables from records and writes them as Markdown, LaTeX, HTML and CSV."""
