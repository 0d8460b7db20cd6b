"""Decides whether two runs have the same base model. No other module does.

A model is identified by its weights, its settings and what its tokenizer does, not by its name. A folder, its
absolute path, a built-in name and a copy of a hub repository are the same model if these are equal, and a
path stands for another model once they change.

A fingerprint, computed by ``models.fingerprint``, is ``v2:<vectors>:<weights>``. ``<vectors>`` is a hash of
the weights of one dimension (norms, biases), which stay floats in a quantised model; ``<weights>`` is a hash
of all weights, or ``UNSEEN`` if they could not be read. Older records hold only ``<vectors>``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doratune.errors import InputError, first_of, shown
from doratune.records.run import ConfigRecord, ModelRecord, RunRecord, TokenizerRecord

UNSEEN = "unseen"
NORMS_ONLY = "Of the base models only the norm weights were compared: a record has no hash of the others."
NAMES_ONLY = "The base models were compared by name and size: a record has no fingerprint of the weights."
WEIGHTS_ONLY = "The base models' configurations and tokenizers were not compared: a record has neither."
ABSENT = object()
SHOWN_TEXT = 30
"""The most characters of a text in a message."""
SHOWN_IDS = 5
"""Token ids in a message, starting just before the first difference."""


@dataclass(frozen=True)
class BaseComparison:
    """The comparison of two records' base models.

    Attributes:
        same: Whether they are the same model, as far as can be told.
        difference: What differs; empty if they are the same.
        notes: What was not compared, in sentences; none if they differ.
    """

    same: bool
    difference: str = ""
    notes: tuple[str, ...] = ()


def compare_base_models(
    ours: ModelRecord,
    theirs: ModelRecord,
    *,
    places: tuple[str, str] = ("in the run", "here"),
    weights: bool = True,
) -> BaseComparison:
    """Tell whether two records have the same base model, from all that both contain.

    All weights are compared if both records have a hash of them; else the vectors and the number of
    parameters; else, where a record has no fingerprint, the names and the number of parameters. Settings and
    token ids are compared where both records have them.

    Args:
        ours: One base model's record.
        theirs: The other's.
        places: Names of the two, for messages with both values.
        weights: Whether to compare the weights too; those of a fully fine-tuned model differ anyway.
    """
    found = [
        _compare_weights(ours, theirs) if weights else BaseComparison(True),
        _compare_configs(ours.config, theirs.config, places),
        _compare_tokenizers(ours.tokenizer, theirs.tokenizer, places),
    ]
    differences = [one.difference for one in found if not one.same]
    if not differences:
        return BaseComparison(True, notes=tuple(dict.fromkeys(note for one in found for note in one.notes)))
    alike = (ours.name, ours.parameters) == (theirs.name, theirs.parameters)
    named = f"{ours.name} ({ours.parameters:,} parameters), {theirs.name} ({theirs.parameters:,})"
    named = f"{ours.name} twice" if alike else named
    return BaseComparison(False, ", ".join([named, *filter(None, differences)]))


def _compare_weights(ours: ModelRecord, theirs: ModelRecord) -> BaseComparison:
    our_vectors, our_weights = _parts(ours.fingerprint)
    their_vectors, their_weights = _parts(theirs.fingerprint)
    if our_weights is not None and their_weights is not None:
        equal = (our_vectors, our_weights) == (their_vectors, their_weights)
        return BaseComparison(equal, "" if equal else "with different weights")
    if ours.parameters != theirs.parameters:
        return BaseComparison(False)
    if our_vectors is not None and their_vectors is not None:
        if our_vectors != their_vectors:
            return BaseComparison(False, "with different norm weights")
        return BaseComparison(True, notes=(NORMS_ONLY,))
    if _spelled_out(ours.name) != _spelled_out(theirs.name):
        return BaseComparison(False, "of which one has no fingerprint")
    return BaseComparison(True, notes=(NAMES_ONLY,))


def _compare_configs(
    ours: ConfigRecord | None, theirs: ConfigRecord | None, places: tuple[str, str]
) -> BaseComparison:
    """Compare settings; one that only one version of transformers has does not count as a difference."""
    if ours is None or theirs is None:
        return BaseComparison(True, notes=(WEIGHTS_ONLY,))
    if ours == theirs:
        return BaseComparison(True)
    our_settings, their_settings = dict(_flat(ours.settings)), dict(_flat(theirs.settings))
    keys = sorted(our_settings.keys() | their_settings.keys())
    single = [key for key in keys if (key in our_settings) != (key in their_settings)]
    if ours.transformers == theirs.transformers:
        single = []
    changed = [
        f"{key} is {_value(our_settings, key)} {places[0]} and {_value(their_settings, key)} {places[1]}"
        for key in keys
        if key not in single and our_settings.get(key, ABSENT) != their_settings.get(key, ABSENT)
    ]
    if changed:
        return BaseComparison(False, f"with different settings in config.json: {first_of(changed)}")
    note = (
        "Settings of the base models were not compared, as only one of transformers "
        f"{ours.transformers} and {theirs.transformers} has them: {first_of(single)}."
    )
    return BaseComparison(True, notes=(note,) if single else ())


def _compare_tokenizers(
    ours: TokenizerRecord | None, theirs: TokenizerRecord | None, places: tuple[str, str]
) -> BaseComparison:
    if ours is None or theirs is None:
        return BaseComparison(True, notes=(WEIGHTS_ONLY,))
    if ours == theirs:
        return BaseComparison(True)
    facts = {
        "its size": (ours.vocabulary, theirs.vocabulary),
        "what ends a row": (ours.eos, theirs.eos),
        "what ends an answer": (ours.ends, theirs.ends),
    }
    changed = [
        f"{what} is {one} {places[0]} and {other} {places[1]}"
        for what, (one, other) in facts.items()
        if one != other
    ]
    # Another version of doratune may record the ids of other texts.
    for texts, others in ((ours.prompts, theirs.prompts), (ours.completions, theirs.completions)):
        for text, ids in texts.items():
            if others.get(text, ids) != ids:
                one, other = _first_difference(ids.split(), others[text].split())
                named = shown(text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}…")
                changed.append(f"{named} is {one} {places[0]} and {other} {places[1]}")
    if changed:
        return BaseComparison(False, f"with different tokenizers: {first_of(changed)}")
    return BaseComparison(True)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by path, such as rope_parameters.rope_theta and layer_types.0."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inside:
            yield from _flat(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _value(settings: Mapping[str, Any], key: str) -> str:
    return shown(settings[key]) if key in settings else "absent"


def _first_difference(ours: list[str], theirs: list[str]) -> tuple[str, str]:
    """Both lists of ids, from just before the first difference."""
    pairs = zip(ours, theirs, strict=False)
    same = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))
    start = max(same - 1, 0)

    def part(ids: list[str]) -> str:
        inside = " ".join(ids[start : start + SHOWN_IDS]) or "nothing"
        return f"{'… ' if start else ''}{inside}{' …' if len(ids) > start + SHOWN_IDS else ''}"

    return part(ours), part(theirs)


def check_one_base_model(models: Mapping[str, ModelRecord], *, fix: str) -> list[str]:
    """Refuse runs of different base models.

    Args:
        models: The base model's record in each run, by the run's name or folder.
        fix: What the user can do about it.

    Returns:
        Sentences about what was not compared, each once.

    Raises:
        InputError: Two base models differ.
    """
    notes: dict[str, None] = {}
    for (our_run, ours), (their_run, theirs) in itertools.combinations(models.items(), 2):
        found = compare_base_models(ours, theirs, places=(f"in {our_run}", f"in {their_run}"))
        if not found.same:
            raise InputError(
                "the runs have different base models, so they cannot be compared",
                where=f"{our_run}, {their_run}",
                got=found.difference,
                fix=fix,
            )
        notes |= dict.fromkeys(found.notes)
    return list(notes)


def check_own_base_model(record: RunRecord, *, where: str) -> None:
    """Refuse a run that was evaluated on another base model than it was trained on.

    Args:
        record: The run's record.
        where: The run's folder, for the message.

    Raises:
        InputError: An evaluation has another base model.
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
    """The hash of the vectors and that of all weights, each None if missing."""
    if fingerprint is None:
        return None, None
    version, vectors, weights = [*fingerprint.split(":"), "", ""][:3]
    if version != "v2":
        return fingerprint, None
    return vectors, None if weights == UNSEEN else weights


def _spelled_out(name: str) -> str:
    """A folder's or file's absolute path, without links; any other name unchanged."""
    path = Path(name).expanduser()
    return os.path.realpath(path) if path.exists() else name
