"""The settings that the runs of a comparison share, and notes on those in which they differ."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from doratune.methods.find import title_of
from doratune.methods.former import without_switches
from doratune.records.base import Setting
from doratune.records.run import RunRecord, deciding, unused_settings
from doratune.records.study import method_of

BY_ARM = frozenset({"method", "engine", "name", "output", "overwrite", "resume"})
"""Settings that differ between arms by definition."""

WITHOUT_EFFECT = frozenset({"report_to", "save_steps", "keep_checkpoints"})
"""Settings that do not affect the result."""

BY_SEED = WITHOUT_EFFECT | {
    *("seed", "name", "output", "resume", "overwrite"),
    *("model", "data", "task", "device_map"),
}
"""Settings in which the runs of one arm may differ; models and rows are compared by their content."""

ADDED = {"on_nonfinite": "stop"}
"""Settings that older runs lack, with the value equal to their behaviour."""


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """The configuration without nesting: ``{"lora": {"rank": 8}}`` becomes ``{"lora.rank": 8}``.

    Unset values (None) and the values in ``ADDED`` are left out. A list with anything but plain values
    becomes its text.
    """
    flat: dict[str, Setting] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            plain = all(item is None or isinstance(item, bool | int | float | str) for item in value)
            flat[prefix + key] = list(value) if plain else str(value)
        elif value is not None and value != ADDED.get(prefix + key):
            flat[prefix + key] = value
    return flat


def arm_key(record: RunRecord, *, besides: Collection[str] = ()) -> str:
    """A key of everything that the runs of one arm share, but for their base model's weights.

    Args:
        record: A run that trained something.
        besides: Further settings in which the runs may differ.
    """
    config = without_switches({**record.config, "method": method_of(record)})
    config = {key: value for key, value in flat_config(config).items() if key not in {*BY_SEED, *besides}}
    rows = [one.asked for one in record.data]
    method = [config.pop("method"), deciding(record)]  # the path of an own method's file does not matter
    return json.dumps([method, record.model.dtype, rows, config], sort_keys=True)


def shared_settings(records: Mapping[str, RunRecord]) -> dict[str, Setting]:
    """The settings that are equal in all trained runs that have them (all runs, if none was trained)."""
    shared = {}
    for key, values in _by_key(records).items():
        first, *others = values.values()
        if first is not None and all(value == first for value in others):
            shared[key] = first
    return shared


def differing_settings(records: Mapping[str, RunRecord]) -> dict[str, dict[str, Setting]]:
    """The settings that differ, each with its value in every run; None if a run does not have it.

    The model's name is left out, because a model can be named in several ways.
    """
    return {
        key: values
        for key, values in _by_key(records).items()
        if key != "model" and any(value != next(iter(values.values())) for value in values.values())
    }


def notes_on_differences(records: Mapping[str, RunRecord], *, told: Collection[str] = ()) -> list[str]:
    """Sentences on differences other than the method between runs of one base model.

    Args:
        records: The runs by their names.
        told: Settings whose differences are told elsewhere.
    """
    notes = []
    notes += type_notes(records)
    for key, values in differing_settings(records).items():
        if key != "dtype" and key not in told:
            notes.append(f"The runs differ in {key}: {by_name(values)}.")
    if len({tuple(data.sha256 for data in one.data) for one in _described(records).values()}) > 1:
        notes.append("The runs were not trained on the same rows.")
    elif len({tuple(data.asked for data in one.data) for one in _described(records).values()}) > 1:
        notes.append("The runs were trained on the same rows, asked in different ways.")
    steps = {name: record.training.steps for name, record in records.items() if record.training}
    if len(set(steps.values())) > 1:
        notes.append(f"The runs took different numbers of steps: {by_name(steps)}.")
    skipped = {name: one.training.skipped_steps for name, one in records.items() if one.training}
    if any(skipped.values()):
        notes.append(
            f"Optimizer steps were left out, as a loss or gradient was not finite: {by_name(skipped)}."
        )
    return notes + environment_notes(records)


def type_notes(records: Mapping[str, RunRecord]) -> list[str]:
    """A sentence on trained runs whose base weights were of different types.

    The base model itself was not trained. Its answers are compared with those of the runs by the type that
    they were computed in, which each evaluation records.
    """
    dtypes = {name: record.model.dtype for name, record in _described(records).items()}
    if len(set(dtypes.values())) < 2:
        return []
    return [f"The base weights were not of the same type in training: {by_name(dtypes)}."]


def environment_notes(records: Mapping[str, RunRecord]) -> list[str]:
    """Sentences on differences between the runs' machines and software."""
    environments = [record.environment for record in records.values()]
    notes = []
    if len({(one.platform, one.cpu, one.cores, one.gpu) for one in environments}) > 1:
        notes.append("The runs were made on different machines: times and memory cannot be compared.")
    if any(one.packages != environments[0].packages for one in environments):
        notes.append("The runs were made with different versions of packages.")
    if len({(one.doratune, one.git_commit) for one in environments}) > 1:
        notes.append("The runs were made with different versions of doratune.")
    return notes


def _described(records: Mapping[str, RunRecord]) -> Mapping[str, RunRecord]:
    """The trained runs, because only their settings matter; all runs if none was trained."""
    return {name: record for name, record in records.items() if record.method != "base"} or records


def _by_key(records: Mapping[str, RunRecord]) -> dict[str, dict[str, Setting]]:
    """Each setting's value by run, None if it is not set; without runs whose method ignores it."""
    described = _described(records)
    settings = {name: _settings(record) for name, record in described.items()}
    return {
        key: {
            name: own.get(key)
            for name, own in settings.items()
            if key not in unused_settings(described[name])
        }
        for key in dict.fromkeys(key for own in settings.values() for key in own)
    }


def _settings(record: RunRecord) -> dict[str, Setting]:
    known: dict[str, Setting] = {"model": record.model.name, "dtype": record.model.dtype}
    if record.data:
        known["training_data"] = [f"{data.source} {data.split}, {data.rows} rows" for data in record.data]
    if any(data.definition for data in record.data):  # the file's name does not matter
        known["task"] = [data.task for data in record.data]
    known["seed"] = record.seed
    own = flat_config(without_switches({**record.config, "method": record.method}))
    left_out = BY_ARM | WITHOUT_EFFECT | unused_settings(record) | known.keys()
    if "steps" in own:  # overrides the epochs
        left_out |= {"epochs"}
    return known | {key: value for key, value in own.items() if key not in left_out}


def by_name(values: Mapping[str, object]) -> str:
    """Values with their names, for a sentence; methods have their titles, as in tables."""
    return ", ".join(f"{title_of(name)} {value}" for name, value in values.items())
