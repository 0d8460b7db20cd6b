"""Whether two runs began from one base model. The only place that decides it.

A model is known by its weights, not by its name: a folder, its absolute path, a built-in name and a copy of a
hub repository are one model while their weights are equal, and one path holds two models once they change.

A fingerprint is ``v2:<vectors>:<weights>``, as ``models.fingerprint`` takes it. ``<vectors>`` is a hash of
the weights of one dimension (norms, biases), which stay floats in a quantised model; ``<weights>`` is a hash
of all weights, or ``UNSEEN`` where they could not be read. Older records hold ``<vectors>`` alone.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from doratune.errors import InputError
from doratune.records.run import ModelRecord, RunRecord

UNSEEN = "unseen"
NORMS_ONLY = "Of the base models only the norm weights were compared: a record has no hash of the others."
NAMES_ONLY = "The base models were compared by name and size: a record has no fingerprint of the weights."


@dataclass(frozen=True)
class BaseComparison:
    """What two records say of their base models.

    Attributes:
        same: Whether they are one model, as far as can be told.
        difference: What differs; empty where they are one.
        note: What was not compared; None where every weight was, or where they differ.
    """

    same: bool
    difference: str = ""
    note: str | None = None


def compare_base_models(ours: ModelRecord, theirs: ModelRecord) -> BaseComparison:
    """Tell whether two records are of one base model, by the most that both of them know.

    All weights are compared if both records have a hash of them; else the vectors and the number of
    parameters; else, where a record has no fingerprint, the names and the number of parameters.
    """
    alike = (ours.name, ours.parameters) == (theirs.name, theirs.parameters)
    named = f"{ours.name} ({ours.parameters:,} parameters), {theirs.name} ({theirs.parameters:,})"
    named = f"{ours.name} twice" if alike else named
    our_vectors, our_weights = _parts(ours.fingerprint)
    their_vectors, their_weights = _parts(theirs.fingerprint)
    if our_weights is not None and their_weights is not None:
        equal = (our_vectors, our_weights) == (their_vectors, their_weights)
        return BaseComparison(equal, "" if equal else f"{named}, with different weights")
    if ours.parameters != theirs.parameters:
        return BaseComparison(False, named)
    if our_vectors is not None and their_vectors is not None:
        if our_vectors != their_vectors:
            return BaseComparison(False, f"{named}, with different norm weights")
        return BaseComparison(True, note=NORMS_ONLY)
    if _spelled_out(ours.name) != _spelled_out(theirs.name):
        return BaseComparison(False, f"{named}, of which one has no fingerprint")
    return BaseComparison(True, note=NAMES_ONLY)


def check_one_base_model(models: Mapping[str, ModelRecord], *, fix: str) -> list[str]:
    """Refuse runs of different base models.

    Args:
        models: What each run says of its base model, by the run's name or folder.
        fix: What the user can do about it.

    Returns:
        Sentences on what was not compared, each once.

    Raises:
        InputError: Two of them differ.
    """
    notes: dict[str, None] = {}
    for (our_run, ours), (their_run, theirs) in itertools.combinations(models.items(), 2):
        found = compare_base_models(ours, theirs)
        if not found.same:
            raise InputError(
                "the runs have different base models, so they cannot be compared",
                where=f"{our_run}, {their_run}",
                got=found.difference,
                fix=fix,
            )
        if found.note:
            notes[found.note] = None
    return list(notes)


def check_own_base_model(record: RunRecord, *, where: str) -> None:
    """Refuse a run that was evaluated on another base model than it was trained on.

    Args:
        record: The run's.
        where: Its folder, for the message.

    Raises:
        InputError: It was.
    """
    for one in record.evaluations:
        if one.other_base is not None:
            raise InputError(
                "the run was evaluated on another base model than it was trained on",
                where=f"{where}, {one.task}",
                got=f"base {one.other_base.name} ({one.other_base.source})",
                expected=f"base {record.model.name} ({record.model.source})",
                fix="evaluate it again with --overwrite, without --allow-other-base",
            )


def _parts(fingerprint: str | None) -> tuple[str | None, str | None]:
    """The hash of the vectors and that of all weights, None where there is none."""
    if fingerprint is None:
        return None, None
    version, vectors, weights = [*fingerprint.split(":"), "", ""][:3]
    if version != "v2":
        return fingerprint, None
    return vectors, None if weights == UNSEEN else weights


def _spelled_out(name: str) -> str:
    """A folder's or file's absolute path, without links; any other name as it is."""
    path = Path(name).expanduser()
    return os.path.realpath(path) if path.exists() else name
