"""What launchers set in the environment, and which process speaks."""

from __future__ import annotations

import pytest

from doratune.errors import InputError, OtherProcessError
from doratune.launch import RANK, SIZE, Launch, first_process_speaks, launched, refuse_lone_process

TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SIZE, *RANK, *ACCELERATE, "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def start(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch("none", 1, 0)),
        (TORCHRUN, Launch("torchrun", 4, 3)),
        (ACCELERATE, Launch("accelerate", 1, 0)),
        ({**TORCHRUN, **ACCELERATE}, Launch("accelerate", 4, 3)),
        (OPEN_MPI, Launch("mpirun", 2, 1)),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, Launch("mpirun", 2, 0)),
        ({"WORLD_SIZE": "2", "RANK": "1"}, Launch("other", 2, 1)),
    ],
)
def test_a_launcher_is_told_by_its_environment(environment: dict[str, str], expected: Launch) -> None:
    assert launched(environment) == expected


def test_one_process_instead_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_lone_process()
    start(monkeypatch, ACCELERATE)
    refuse_lone_process()  # one was asked for
    start(monkeypatch, {"MASTER_ADDR": "127.0.0.1"})
    with pytest.raises(InputError, match="torchrun --nproc-per-node N"):
        refuse_lone_process()
    start(monkeypatch, OPEN_MPI)
    refuse_lone_process()


def test_one_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError), first_process_speaks():
        print("here")
        raise InputError("wrong")
    start(monkeypatch, TORCHRUN)
    with pytest.raises(OtherProcessError) as caught, first_process_speaks():
        print("there")
        raise InputError("wrong")
    assert caught.value.exit_code == 2
    assert capsys.readouterr().out == "here\n"
