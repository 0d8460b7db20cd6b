"""Modules that SGLang computes as one, and which of them it wants an adapter to have; no torch."""

from __future__ import annotations

from collections.abc import Set


def lacking(modules: Set[str]) -> set[str]:
    """What an adapter lacks of the modules that SGLang computes as one.

    q, k and v are one, and so are gate and up. SGLang fills up k and up itself, but not q, v and gate.

    Args:
        modules: The adapter's modules of one layer, without the names of their parents.
    """
    wanted = {"q_proj", "v_proj"} if modules & {"q_proj", "k_proj", "v_proj"} else set()
    if "up_proj" in modules:
        wanted.add("gate_proj")
    return wanted - modules
