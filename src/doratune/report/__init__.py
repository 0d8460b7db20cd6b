"""A comparison for people: a table in the terminal, a Markdown page, one self-contained HTML file."""
