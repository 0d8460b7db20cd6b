"""Reports of studies, runs and analyses: in the terminal, as Markdown, and as a self-contained HTML page."""
