"""Makes one analysis of several runs, with only a few rows of one weight in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from doratune.analysis.base import Base
from doratune.analysis.change import Change, Rows, correlations, measure
from doratune.analysis.runs import AnalysedRun, load_runs
from doratune.errors import InputError
from doratune.finite import is_finite
from doratune.models.weights import WeightFiles
from doratune.peft.adapter_file import refuse_other_settings
from doratune.peft.layer_adapters import LayerAdapter, read_layer_adapters
from doratune.records.analysis import AnalysisRecord, GainDrift, RunAnalysis, WeightChange
from doratune.records.layout import ADAPTER_NAME, weights_path
from doratune.records.weights import checked_weights
from doratune.training.checkpoints import changed_weights

logger = logging.getLogger(__name__)

PART_ELEMENTS = 1 << 22
"""The most elements of a weight at a time: 32 MiB in float64."""


def analyze(directories: Sequence[Path], *, reproduce: str) -> AnalysisRecord:
    """Measure how each run moved the magnitude and the direction of the weights, checkpoint by checkpoint.

    Args:
        directories: Finished runs of one base model, with their checkpoints.
        reproduce: The command that repeats this analysis.

    Returns:
        The analysis. A fully fine-tuned run is analysed at the layers that the other runs have adapted; if no
        run has an adapter, at the layers that its configuration names as targets.

    Raises:
        InputError: A run, its base model or a checkpoint cannot be used.
    """
    runs = load_runs(directories)
    for run in runs:
        for _, folder in run.checkpoints:
            _check(run, folder)
    base = Base(runs[0].record.model)
    adapted = [run for run in runs if run.method != "full"]
    kinds = dict.fromkeys(kind for run in adapted or runs for kind in run.record.config["targets"])
    return AnalysisRecord(
        model=runs[0].record.model.name,
        runs=[_analyze_run(run, base, base.of_kinds(list(kinds))) for run in runs],
        reproduce=reproduce,
    )


def _analyze_run(run: AnalysedRun, base: Base, layers: list[str]) -> RunAnalysis:
    """The analysis of one run; ``layers`` are used for full fine-tuning."""
    logger.info("%s: %d checkpoints of %s", run.name, len(run.checkpoints), run.method)
    changes: list[WeightChange] = []
    gains: list[GainDrift] = []
    dtype = getattr(torch, run.record.model.dtype)
    for step, folder in run.checkpoints:
        moved = _full(base, folder, dtype, layers) if run.method == "full" else _adapted(base, folder, dtype)
        for layer, change in moved:
            kind = layer.rpartition(".")[2]
            changes.append(
                WeightChange(
                    step=step,
                    layer=layer,
                    kind=kind,
                    magnitude=change.magnitude,
                    direction=change.direction,
                    rounding=change.rounding,
                )
            )
            if change.gain_mean is not None and change.gain_deviation is not None:
                gains.append(
                    GainDrift(
                        step=step,
                        layer=layer,
                        kind=kind,
                        mean=change.gain_mean,
                        deviation=change.gain_deviation,
                    )
                )
    return RunAnalysis(
        name=run.name,
        method=run.method,
        run=str(run.directory),
        steps=[step for step, _ in run.checkpoints],
        changes=changes,
        gains=gains,
        correlations=correlations(changes),
    )


def _check(run: AnalysedRun, folder: Path) -> None:
    """Refuse a checkpoint, or the trained weights, that are not as the run left them."""
    if run.method != "full":
        refuse_other_settings(run.record, folder)
    if folder == weights_path(run.directory, run.record.method):
        training = run.record.training
        checked_weights(folder, training.weights_checksum if training else None)
    elif changed := changed_weights(folder):
        raise InputError(
            "a checkpoint is not as it was written",
            where=str(folder),
            got=f"{changed} has changed",
            fix="copy the folder again from where it was trained, or remove the checkpoint",
        )


def _full(base: Base, folder: Path, dtype: torch.dtype, layers: list[str]) -> Iterator[tuple[str, Change]]:
    """Every layer's change in a checkpoint of full fine-tuning."""
    trained = WeightFiles(folder)

    def rows(layer: str) -> Iterator[Rows]:
        for part in _parts(base.shape(layer)):
            after = trained.rows(f"{layer}.weight", part)
            if not is_finite(after):
                raise InputError("a weight is not finite", where=str(folder), got=f"{layer}.weight")
            yield Rows(base.rows(layer, part, dtype), after.double())

    for layer in layers:
        yield layer, measure(rows(layer))


def _adapted(base: Base, folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Change]]:
    """Every linear layer's change in a checkpoint of LoRA or DoRA."""
    adapters = read_layer_adapters(base.skeleton(), folder)
    if not adapters.linear:
        raise InputError(
            "the adapter has no linear layers, and only those are analysed",
            where=str(folder),
            got=", ".join(adapters.others),
        )
    if folder.name == ADAPTER_NAME:  # once per run, not at every checkpoint
        for layer in adapters.others:
            logger.info("left out, since only linear layers are analysed: %s", layer)
    for layer, adapter in adapters.linear.items():
        parts = _parts(base.shape(layer))
        yield layer, measure(_adapted_rows(base.rows(layer, part, dtype), adapter, part) for part in parts)


def _adapted_rows(before: Tensor, adapter: LayerAdapter, part: slice) -> Rows:
    return Rows(before, before + adapter.update(part), adapter.magnitude(part))


def _parts(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of a weight's rows, one in memory at a time."""
    size = max(1, PART_ELEMENTS // shape[1])
    return (slice(start, start + size) for start in range(0, shape[0], size))
