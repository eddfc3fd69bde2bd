"""Build tables from records and write them as Markdown, LaTeX, HTML and CSV."""
