"""What the user named to be evaluated: a run, an adapter's folder or a model's name; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.records.layout import (
    ADAPTER_CONFIG,
    ADAPTER_NAME,
    MODEL_NAME,
    is_recorded,
    is_started,
    required_weights,
    weights_path,
)
from doratune.records.run import RunRecord
from doratune.records.storage import read_record, unfinished


@dataclass(frozen=True)
class Found:
    """The folders that belong to what the user named.

    Attributes:
        run: A run directory; None for a base model or a plain PEFT adapter.
        record: The run's, if there is a run.
        adapter: An adapter's folder; None for a base model and for a fully fine-tuned one.
        model: A fully fine-tuned model's folder.
    """

    run: Path | None = None
    record: RunRecord | None = None
    adapter: Path | None = None
    model: Path | None = None


def find_trained(target: str) -> Found:
    """What a run directory, an adapter's folder or a model's name stands for.

    Of the folders in a run directory only the one with the weights that it trained is the run's; any other is
    an adapter or a model by itself.

    Args:
        target: What the user named.

    Returns:
        The folders. ``run`` alone for evaluations of a base model, as ``compare`` leaves them.

    Raises:
        InputError: If it is a run directory whose training is not finished, or whose weights are not there.
    """
    folder = Path(target).expanduser()
    run = _run_of(folder)
    if run is None:
        return Found(adapter=folder) if (folder / ADAPTER_CONFIG).is_file() else Found()
    if not is_recorded(run):
        raise unfinished(run)
    record = read_record(run)
    if record.method == "base":
        return Found(run, record)
    if record.training is None:
        raise InputError(
            "the folder holds evaluations of an adapter, not the adapter",
            where=target,
            fix=f"name the adapter's folder ({record.config.get('target')}), and this one with --output",
        )
    weights = required_weights(run, record.method)
    full = record.method == "full"
    return Found(run, record, adapter=None if full else weights, model=weights if full else None)


def _run_of(folder: Path) -> Path | None:
    """The directory of the run that ``folder`` is, or whose weights it holds; None if it is no run's."""
    place = folder.absolute()
    run = folder.parent if folder.name == place.name else place.parent
    if place.name in (ADAPTER_NAME, MODEL_NAME) and is_started(run):
        method = read_record(run).method if is_recorded(run) else None
        if method is None or weights_path(run, method).name == place.name:
            return run
    if (folder / ADAPTER_CONFIG).is_file():
        return None
    return folder if is_started(folder) or is_recorded(folder) else None


def output_folder(config: EvalConfig, found: Found) -> Path:
    """Where the results go."""
    name = found.adapter.name if found.adapter else Path(config.target).name
    return config.output or found.run or Path("runs") / f"eval-{name}"
