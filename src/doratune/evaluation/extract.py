"""The answer inside a generated text."""

from __future__ import annotations

import re
from collections.abc import Collection


def extract_answer(text: str, pattern: str, labels: Collection[str]) -> str | None:
    """The first match of the task's answer pattern in a generated text.

    Args:
        text: What the model wrote after the prompt.
        pattern: A regular expression, matched case-sensitively, such as ``true|false`` or ``answer[1-4]``.
        labels: The names of the row's candidates.

    Returns:
        The label, or None when nothing matches or the first match is not one of ``labels`` (``answer4`` for a
        row with three answers). Both count as a wrong answer; a later match does not rescue the row.
    """
    match = re.search(pattern, text)
    if match is None or match.group() not in labels:
        return None
    return match.group()
