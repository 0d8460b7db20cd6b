"""A study for people: a summary in the terminal, a Markdown file, one self-contained HTML page."""
