"""``benchmarks/pipeline``: every command of both sides, in turn, round by round."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from doratune.bench.output import require_free
from doratune.data.examples import build_examples
from doratune.data.source import load_file
from doratune.data.tasks import get_task
from doratune.records.bench import Machine
from doratune.records.files import write_json_atomic
from doratune.records.run import DataRecord
from pipeline.commands import PipelineBenchConfig, phase_commands, rehearsal, settings_of
from pipeline.process import run_command
from pipeline.record import Phase, PhaseCost, PipelineBenchRecord, PipelineSettings, Side
from pipeline.results import judge, read_round

logger = logging.getLogger("doratune.benchmarks.pipeline")  # where the command line shows messages

TRAINING: tuple[Phase, ...] = ("doratune-train", "reference-train")
GENERATION: tuple[Phase, ...] = ("doratune-generate", "reference-generate")


@dataclass(frozen=True)
class Rows:
    """A data file, and how many of its rows are used."""

    record: DataRecord
    used: int


def bench_pipeline(config: PipelineBenchConfig, *, overwrite: bool = False) -> PipelineBenchRecord:
    """Run both sides, and write the record if the configuration names a file.

    Args:
        config: Data and model.
        overwrite: Replace the file.

    Raises:
        InputError: A file or the model cannot be used, or the output exists.
        DoratuneError: A command failed.
    """
    if config.output is not None:
        require_free(config.output, overwrite=overwrite)
    train = _read_rows(config.train_data, "train", config.train_rows, config.task)
    test = _read_rows(config.test_data, "test", config.test_rows, config.task)
    settings = settings_of(config)
    started = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="doratune-bench-") as scratch:
        folder = Path(scratch)
        logger.info("fetching the model and trying one row")
        run_command(rehearsal(config, folder), log=folder / "rehearsal.log", threads=config.threads)
        results = [
            read_round(place, first, _run_phases(config, settings, place, first))
            for place, first in _rounds(folder, config.rounds)
        ]
    rounds = [entry for entry, _ in results]
    record = PipelineBenchRecord(
        task=config.task,
        model=results[0][1].model,
        settings=settings,
        train_data=train.record,
        train_rows=train.used,
        test_data=test.record,
        test_rows=test.used,
        rounds=rounds,
        verdicts=judge(rounds),
        machine=_machine(config.threads),
        started=started,
        finished=datetime.now(UTC),
    )
    if config.output is not None:
        write_json_atomic(config.output, record.to_dict())
    return record


def _read_rows(path: Path, split: str, limit: int, task_name: str) -> Rows:
    """Check a file's rows and count them."""
    task, loaded = get_task(task_name), load_file(path)
    build_examples(loaded.rows, source=loaded.source, fmt="instruct", task=task)
    record = DataRecord(
        task=task.name, source=path.name, split=split, sha256=loaded.sha256, rows=len(loaded.rows)
    )
    return Rows(record, min(limit, len(loaded.rows)))


def _rounds(folder: Path, count: int) -> list[tuple[Path, Side]]:
    """For each round, its folder and the side that goes first."""
    rounds: list[tuple[Path, Side]] = []
    for number in range(count):
        place = folder / f"round-{number + 1}"
        place.mkdir()
        rounds.append((place, "reference" if number % 2 else "doratune"))
    return rounds


def _run_phases(
    config: PipelineBenchConfig, settings: PipelineSettings, folder: Path, first: Side
) -> dict[Phase, PhaseCost]:
    """Run every phase: first both sides train, then both evaluate."""
    turn = 1 if first == "doratune" else -1
    order: list[Phase] = [*TRAINING[::turn], *GENERATION[::turn], "doratune-likelihood"]
    commands = phase_commands(config, settings, folder)
    costs: dict[Phase, PhaseCost] = {}
    for phase in order:
        costs[phase] = run_command(commands[phase], log=folder / f"{phase}.log", threads=config.threads)
        logger.info("%s: %s took %.1f s", folder.name, phase, costs[phase].seconds)
    return costs


def _machine(threads: int | None) -> Machine:
    """The machine's description; torch is imported only now, see ``process.run_command``."""
    import torch

    from doratune.bench.machine import describe_machine

    stamp = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return stamp if threads is None else stamp.model_copy(update={"threads": threads})
