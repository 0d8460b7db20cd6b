"""Rows, in one of two layouts, and how an instruction becomes a prompt.

The prompt is the Alpaca template as the original study used it, without its stray spaces. Wording:
github.com/tatsu-lab/stanford_alpaca, by way of AGI-Edgerunners/LLM-Adapters (both Apache-2.0).
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
"""A row: in the LLM-Adapters layout the texts "instruction", "input" (often empty), "output" and "answer"; or
a "question", its "choices" and the "answer", see ``choices``."""

_PLAIN = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
"""

_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{context}

### Response:
"""


def render_prompt(instruction: str, context: str = "") -> str:
    """The text that a model continues with its answer, the same in training and evaluation.

    Args:
        instruction: What to do.
        context: The row's ``input``; if it is empty, the prompt has no section for it.

    Returns:
        The prompt, ending in "### Response:" and a line break.
    """
    template = _WITH_INPUT if context else _PLAIN
    return template.format(instruction=instruction, context=context)


def answer_text(label: str) -> str:
    """The text that a model should write for an answer in the instruct format; the ``output`` of a row."""
    return f"the correct answer is {label}"


def make_row(instruction: str, label: str) -> Row:
    """A row without ``input`` whose answer is ``label``."""
    return {"instruction": instruction, "input": "", "output": answer_text(label), "answer": label}
