"""Two processes train what one does, resume where they were, and end together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from locked_elsewhere import locked_elsewhere
from process_group import in_processes
from training_cases import End, alike, everything, losses, sharded, tokens, weights

from doratune.models.load import load_model
from doratune.peft.load import load_adapter
from doratune.records.layout import checkpoints
from doratune.records.storage import read_record

pytestmark = pytest.mark.slow

TWENTY: dict[str, dict[str, Any]] = {
    "dora": {"method": "dora"},
    "dora-accumulated": {"method": "dora", "micro_batch_size": 1},
    "dora-one-row": {"method": "dora", "micro_batch_size": 2, "rows": 25},
    "dora-checkpointed": {"method": "dora", "gradient_checkpointing": True},
    "lora": {"method": "lora"},
    "full": {"method": "full", "learning_rate": 1e-3},
    **({"dora-4bit": {"method": "dora", "load_in_4bit": True}} if find_spec("bitsandbytes") else {}),
}
"""Runs of twenty steps; the third step of each epoch has five rows instead of eight.

With 25 rows the fourth has one, and the other process has none.
"""
IN_FOUR = ("dora-accumulated", "lora", "full")
"""An epoch ends with five rows: of second micro-batches, one process in four has one."""
STEPS = {"one": (1, 2, 3, 4, 5), "four": (1, 4)}
"""After which of six steps a run is resumed, in epochs of three."""
SHARDED = ("dora-accumulated", "lora", "full")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def cases(tiny_model: Path) -> dict[str, dict[str, Any]]:
    return {name: {"model": str(tiny_model), "steps": 20, **one} for name, one in TWENTY.items()}


@pytest.fixture(scope="module")
def one(root: Path, cases: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder of the runs that one process trained."""
    folder = root / "one"
    (ends,) = in_processes(
        1, alike, folder, cases, cases["dora"]["model"], STEPS["one"], folder=root / "ends-1"
    )
    assert all(end.message == "" for (end,) in ends.values())
    return folder


@pytest.fixture(scope="module")
def two(
    root: Path, cases: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Path, list[dict[str, list[End]]]]]:
    """The folder of the runs that two processes trained, and how each ended in both."""
    folder = root / "two"
    with locked_elsewhere(folder / "locked"):
        yield folder, in_processes(2, everything, folder, cases, folder=root / "ends-2")


@pytest.fixture(scope="module")
def four(root: Path, cases: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder of the runs that four processes trained."""
    folder = root / "four"
    runs = {name: cases[name] for name in IN_FOUR}
    for ends in in_processes(
        4, alike, folder, runs, cases["dora"]["model"], STEPS["four"], folder=root / "ends-4"
    ):
        assert all(end.message == "" for (end,) in ends.values())
    return folder


@pytest.fixture(scope="module")
def fsdp2(root: Path, cases: Mapping[str, Mapping[str, Any]]) -> tuple[Path, list[dict[str, list[End]]]]:
    """The folder of the runs that two processes trained with FSDP2, and how each ended in both."""
    folder = root / "fsdp2"
    runs = {name: cases[name] for name in SHARDED}
    return folder, in_processes(2, sharded, folder, runs, cases["dora"]["model"], folder=root / "ends-fsdp2")


Two = tuple[Path, list[dict[str, list[End]]]]


@pytest.mark.parametrize("name", TWENTY)
def test_two_processes_train_what_one_does(name: str, one: Path, two: Two) -> None:
    folder, _ = two
    assert len(losses(one / name)) == 20
    _same_to_rounding(folder / name, one / name)


@pytest.mark.parametrize("name", ["whole-1", "whole-3", "whole-5", "peft-5"])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, two: Two) -> None:
    """To the last bit, with dropout, in the middle of an epoch and between two."""
    folder, ends = two
    assert all(end[name][0].message == "" for end in ends)
    _same_run(folder / name, folder / name.partition("-")[0])


@pytest.mark.parametrize(("place", "code"), [(0, 143), (1, 130)])
def test_a_signal_to_one_process_stops_both(place: int, code: int, two: Two) -> None:
    folder, ends = two
    name = f"whole-stop-{place}"
    (stopped, finished), (stopped_other, finished_other) = (end[name] for end in ends)
    assert (stopped.code, stopped_other.code) == (code, code)
    assert (stopped.kind, stopped_other.kind) == ("StoppedError", "OtherProcessError")
    assert "training was interrupted after step" in stopped.message
    assert (finished.code, finished_other.code) == (0, 0)
    _same_run(folder / name, folder / "whole")


def test_each_process_drops_other_elements(two: Two) -> None:
    _, (first, second) = two
    assert first["whole"][0].generator != second["whole"][0].generator
    assert second["whole"][0].generator == second["whole-5"][0].generator


def test_the_record_says_who_trained(one: Path, two: Two) -> None:
    folder, (first, second) = two
    of_two, alone = read_record(folder / "dora-accumulated").training, read_record(one / "dora").training
    assert of_two is not None and of_two.processes is not None and alone is not None
    assert of_two.processes.model_dump() == {
        "launcher": "torchrun",
        "processes": 2,
        "sharing": "ddp",
        "batch_size": 8,
        "micro_batch_size": 1,
        "accumulation": 4,
    }
    assert alone.processes is not None and alone.processes.sharing == "none"
    assert of_two.layers is not None and of_two.layers.model_dump() == {
        "engine": 10,
        "left": {},
        "uncalled": 0,
    }
    assert first["dora"][0].record == second["dora"][0].record == read_record(folder / "dora").to_dict()


def test_what_one_process_refuses_all_do_and_one_says_why(two: Two) -> None:
    folder, (first, second) = two
    said = [
        "another process is writing to this folder",
        "",
        "already holds a run",
        "cannot be divided evenly",
    ]
    for here, there, expected in zip(first["refused"], second["refused"], said, strict=True):
        assert (here.code, there.code) == (2, 2) and expected in here.message
        if expected:
            assert (here.kind, there.kind) == ("InputError", "OtherProcessError")
    apart, there = first["refused"][1], second["refused"][1]
    assert (apart.kind, there.kind) == ("OtherProcessError", "InputError")
    assert "expected: a folder that all processes share" in there.message
    assert (folder / "whole" / "record.json").exists(), "a refusal removes nothing"


def test_overwriting_leaves_one_whole_run(two: Two) -> None:
    folder, ends = two
    assert [[one.code for one in end["again"]] for end in ends] == [[0, 0], [0, 0]]
    assert len(losses(folder / "again")) == 3 and read_record(folder / "again").seed == 1


def test_what_diverges_is_said_once(two: Two) -> None:
    folder, (first, second) = two
    (here,), (there,) = first["diverged"], second["diverged"]
    assert (here.kind, there.kind) == ("DivergedError", "OtherProcessError") and here.code == there.code == 1
    assert (folder / "diverged" / "diverged.json").exists() and not checkpoints(folder / "diverged")
    assert not (folder / "diverged" / "record.json").exists()


def test_a_run_of_one_or_four_processes_can_be_resumed(one: Path, four: Path) -> None:
    for folder in (one, four):
        for step in STEPS[folder.name]:
            _same_run(folder / f"whole-{step}", folder / "whole")


@pytest.mark.parametrize("name", IN_FOUR)
def test_four_processes_train_what_one_does(name: str, one: Path, four: Path) -> None:
    _same_to_rounding(four / name, one / name)


@pytest.mark.parametrize("name", SHARDED)
def test_fsdp2_trains_what_one_process_does(name: str, one: Path, fsdp2: Two, tiny_model: Path) -> None:
    """accelerate offers no FSDP on CPUs; its own function, which the Trainer calls, shards the model here."""
    folder, ends = fsdp2
    assert all(end[name][0].message == "" for end in ends)
    training = read_record(folder / name).training
    assert training is not None and training.processes is not None and training.changes is not None
    assert training.processes.sharing == "fsdp2"
    if name != "full":
        assert training.layers is not None and (training.layers.engine, training.layers.left) == (10, {})
    _same_to_rounding(folder / name, one / name)
    if name != "full":
        base = load_model(str(tiny_model), dtype="float32").model
        load_adapter(base, folder / name / "adapter")  # refuses a file that lacks a tensor
    else:
        load_model(str(folder / name / "model"))


def test_a_resumed_run_under_fsdp2_is_the_uninterrupted_one(fsdp2: Two) -> None:
    folder, ends = fsdp2
    assert [end["whole-4"][0].message for end in ends] == ["", ""]
    _same_run(folder / "whole-4", folder / "whole")


def _same_run(run: Path, whole: Path) -> None:
    assert losses(run) == losses(whole)
    found, expected = weights(run), weights(whole)
    assert found.keys() == expected.keys()
    assert all(weight.equal(expected[key]) for key, weight in found.items())


def _same_to_rounding(run: Path, alone: Path) -> None:
    """Adam divides each gradient by its own size, so rounding grows by some times in twenty steps."""
    assert tokens(run) == tokens(alone)
    assert losses(run) == pytest.approx(losses(alone), rel=2e-6)
    found, expected = weights(run), weights(alone)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=2e-6)
