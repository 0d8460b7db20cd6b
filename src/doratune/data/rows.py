"""A row in the LLM-Adapters layout, the form in which all data goes about."""

from __future__ import annotations

Row = dict[str, str]
"""The keys "instruction", "input" (often empty), "output" and "answer"."""


def answer_text(label: str) -> str:
    """What a model is to write for an answer in the instruct format; the ``output`` of a row."""
    return f"the correct answer is {label}"
