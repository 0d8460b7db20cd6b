"""Errors of the system become one message."""

from __future__ import annotations

import errno
import importlib
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from doratune.cli.main import main


def raised(monkeypatch: pytest.MonkeyPatch, error: OSError) -> int:
    def verb(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=verb))
    return main(["env"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_error_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert raised(monkeypatch, OSError(number, os.strerror(number), "runs/one/record.json")) == 1
    err = capsys.readouterr().err
    assert "could not be read or written" in err
    assert "where: runs/one/record.json" in err and f"got: {os.strerror(number)}" in err


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EISDIR])
def test_a_name_that_the_system_refuses_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert raised(monkeypatch, OSError(number, os.strerror(number), "n" * 5000)) == 2
    assert len(capsys.readouterr().err) < 1500


@pytest.mark.parametrize(("writing", "code"), [(False, 2), (True, 1)])
def test_denied_reading_is_bad_input_and_denied_writing_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, writing: bool, code: int
) -> None:
    (tmp_path / "data.json").touch()
    monkeypatch.setattr(os, "access", lambda *_: writing)
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data.json"))
    assert raised(monkeypatch, error) == code


def test_other_errors_are_not_taken_for_disk_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionRefusedError):
        raised(monkeypatch, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))


@pytest.mark.parametrize("pressed", [True, False])
def test_an_error_after_a_swallowed_interrupt_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pressed: bool
) -> None:
    def verb(arguments: list[str]) -> int:
        try:
            if pressed:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as torch does while it imports NumPy
            pass
        raise RecursionError("half of a module")

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=verb))
    if pressed:
        assert main(["env"]) == 130 and capsys.readouterr().err == "doratune: interrupted\n"
    else:
        with pytest.raises(RecursionError):
            main(["env"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_s_completion_has_verbs_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--tyro-print-completion", shell])
    assert end.value.code in (0, None)
    script = capsys.readouterr().out
    for word in ("doratune", "train", "compare", "presets", "--learning-rate", "--eval-rows", "--dry-run"):
        assert word in script, word
