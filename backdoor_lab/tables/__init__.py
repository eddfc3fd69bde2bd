"""From records to tables, and tables as Markdown, LaTeX, HTML and CSV."""
