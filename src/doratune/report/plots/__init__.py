"""The pictures of a study as SVG: a file for each question."""
