"""The names of the files of runs, studies and analyses, and which of them are there.

A run directory holds ``CONFIG_NAME`` from the start and ``RECORD_NAME`` once it is finished. In between come
``METRICS_NAME``, ``CHECKPOINTS_NAME`` and the trained weights: ``ADAPTER_NAME``, or ``MODEL_NAME`` after full
fine-tuning. Evaluations add ``PREDICTIONS_NAME``. A file is either complete or not there.
"""

from __future__ import annotations

from pathlib import Path

from doratune.errors import InputError
from doratune.records.run import Format, Protocol

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"
ADAPTER_NAME = "adapter"
MODEL_NAME = "model"
RECORD_NAME = "record.json"
DIVERGED_NAME = "diverged.json"
"""In place of the record of a run that diverged."""
PREDICTIONS_NAME = "predictions"
HARNESS_NAME = "lm-eval"
"""The folder of lm-evaluation-harness's results in a run directory."""
RUN_NAMES = frozenset(
    {
        CONFIG_NAME,
        METRICS_NAME,
        CHECKPOINTS_NAME,
        ADAPTER_NAME,
        MODEL_NAME,
        RECORD_NAME,
        DIVERGED_NAME,
        PREDICTIONS_NAME,
        HARNESS_NAME,
    }
)
"""Everything that training and evaluation write into a run directory."""
OWN_FOLDERS = frozenset({CHECKPOINTS_NAME, ADAPTER_NAME, MODEL_NAME, PREDICTIONS_NAME})
"""Folders in a run directory that hold nothing but what belongs to the run."""

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's file that marks a folder as an adapter."""
BASE_MODEL_NAME = "base_model.json"
"""The base model's record in an adapter's folder or a checkpoint."""
TRAINING_DATA_NAME = "training_data.json"
"""The records of a checkpoint's training rows."""
METHOD_NAME = "method.json"
"""What a checkpoint's method is, apart from the words in its file."""
MODEL_CONFIG = "config.json"
"""transformers' file that marks a folder as a model."""

RUNS_NAME = "runs"
"""The folder of a study's run directories, in the study's folder."""
VALIDATION_NAME = "validation"
"""The folder of the answers to the validation rows and their record, in a run directory of a study."""

COMPARISON_NAME = "comparison.json"
"""The record of ``compare`` in versions before it wrote a study's record."""
STUDY_NAME = "study.json"
ANALYSIS_NAME = "analysis.json"
MERGE_NAME = "merge.json"
"""The record in the folder of a merged model."""
CONVERT_NAME = "convert.json"
"""The record in the folder of a converted adapter."""


def is_started(run: Path) -> bool:
    """Whether training has begun in ``run``."""
    return (run / CONFIG_NAME).is_file()


def is_recorded(run: Path) -> bool:
    """Whether ``run`` has a record: its training is finished, or a base model was evaluated there."""
    return (run / RECORD_NAME).is_file()


def has_diverged(run: Path) -> bool:
    """Whether ``run`` ended without a result because its training diverged."""
    return (run / DIVERGED_NAME).is_file() and not is_recorded(run)


def weights_path(run: Path, method: str) -> Path:
    """Where training by ``method`` writes its weights in ``run``."""
    return run / (MODEL_NAME if method == "full" else ADAPTER_NAME)


def trained_weights(run: Path, method: str) -> Path | None:
    """``weights_path``, if the adapter or the model is there."""
    folder = weights_path(run, method)
    file = MODEL_CONFIG if method == "full" else ADAPTER_CONFIG
    return folder if (folder / file).is_file() else None


def required_weights(run: Path, method: str) -> Path:
    """``weights_path`` of a finished run.

    Raises:
        InputError: The adapter or the model is not there.
    """
    weights = trained_weights(run, method)
    if weights is None:
        raise InputError(
            "the run's weights are not there",
            where=str(weights_path(run, method)),
            fix="copy the folder again from where it was trained, or train again with --overwrite",
        )
    return weights


def checkpoints(run: Path) -> dict[int, Path]:
    """The folders of a run's checkpoints by step, ascending."""
    found = {}
    for folder in (run / CHECKPOINTS_NAME).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdecimal():
            found[int(step)] = folder
    return dict(sorted(found.items()))


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run, begun or finished; a run's folder may have only a log and a lock."""
    return is_started(folder) or is_recorded(folder) or has_diverged(folder)


def runs_of_study(study: Path) -> list[Path]:
    """The run directories of a study, finished or not, each followed by its validation."""
    folders = [part for run in sorted((study / RUNS_NAME).glob("*")) for part in (run, run / VALIDATION_NAME)]
    return [folder for folder in folders if is_started(folder) or is_recorded(folder)]


def predictions_name(task: str, form: Format, protocol: Protocol) -> str:
    """The path of an evaluation's predictions in its run: the task's name, then non-default choices."""
    parts = [task]
    if form != "instruct":
        parts.append(form)
    if protocol != "likelihood":
        parts.append(protocol)
    return f"{PREDICTIONS_NAME}/{'.'.join(parts)}.jsonl"
