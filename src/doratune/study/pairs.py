"""Which methods of a study are compared."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.records.study import StudyMethod


def compared_methods(methods: Sequence[StudyMethod]) -> list[tuple[StudyMethod, StudyMethod]]:
    """The pairs that are compared: every method with LoRA, DoRA first; without LoRA, with the first one.

    Args:
        methods: The methods, each once.
    """
    if not methods:
        return []
    reference: StudyMethod = "lora" if "lora" in methods else methods[0]
    others: list[StudyMethod] = [method for method in methods if method not in (reference, "dora")]
    dora: list[StudyMethod] = ["dora"] if "dora" in methods and reference != "dora" else []
    compared: list[StudyMethod] = [*dora, *others]
    return [(reference, other) for other in compared]
