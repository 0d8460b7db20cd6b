"""A study for people: in the terminal, as a Markdown page, as one self-contained HTML file."""
