"""Errors of the system become one message."""

from __future__ import annotations

import errno
import importlib
import os
from types import SimpleNamespace

import pytest

from doratune.cli.main import main


def raised(monkeypatch: pytest.MonkeyPatch, error: OSError) -> int:
    def verb(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=verb))
    return main(["env"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_s_error_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert raised(monkeypatch, OSError(number, os.strerror(number), "runs/one/record.json")) == 1
    err = capsys.readouterr().err
    assert "could not be read or written" in err
    assert "where: runs/one/record.json" in err and f"got: {os.strerror(number)}" in err


def test_other_errors_are_not_taken_for_the_disk_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionRefusedError):
        raised(monkeypatch, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_s_completion_has_verbs_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--tyro-print-completion", shell])
    assert end.value.code in (0, None)
    script = capsys.readouterr().out
    for word in ("doratune", "train", "compare", "presets", "--learning-rate", "--eval-rows", "--dry-run"):
        assert word in script, word
