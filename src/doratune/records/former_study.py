"""study.json as older versions wrote it, converted to today's schema."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def from_version_2(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a study.json of schema version 2, converted to version 3.

    In version 2 the first seed of a plan chose the learning rate for all, among the plan's rates.

    Args:
        data: Parsed JSON of version 2.

    Returns:
        A copy, still to be validated.
    """
    new: dict[str, Any] = {**copy.deepcopy(dict(data)), "schema_version": 3}
    plan = new.get("plan") or {}
    seeds = plan.get("seeds")
    if plan:
        new["plan"] = plan | {"choose": {**plan.get("choose", {}), "per": "arm", "extend": 0}}
    for cell in new["cells"]:
        searched = any(arm["trials"] for arm in cell["arms"])
        cell |= {"chosen_per": "arm", "extended": [0, 0]} if searched else {}
        for arm in cell["arms"]:
            for run in arm["runs"]:
                run["learning_rate"] = arm["learning_rate"]
            for trial in arm["trials"]:
                trial["seed"] = seeds[0] if isinstance(seeds, list) and seeds else None
    return new


def from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a study.json of schema version 1, converted to version 3.

    Args:
        data: Parsed JSON of version 1.

    Returns:
        A copy, still to be validated.
    """
    new = copy.deepcopy(dict(data)) | {"schema_version": 2, "inputs": {}}
    engine = new["plan"].get("settings", {}).get("engine", "doratune")
    for cell in new["cells"]:
        for arm in cell["arms"]:
            arm["name"] = arm["method"]
            arm["engine"] = None if arm["method"] == "full" else engine
    return from_version_2(new)
