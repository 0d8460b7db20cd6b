"""The verbs that list what there is, one a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from doratune.cli import methods, models, presets
from doratune.errors import InputError
from doratune.methods.find import method_names
from doratune.models.builtin import BUILTIN
from doratune.named_yaml import shipped_names


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert all(what.strip() for what in found.values())
    return found


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.main([]) == 0
    assert tuple(listed(capsys)) == method_names()


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert presets.main([]) == 0
    found = listed(capsys)
    assert list(found) == shipped_names("doratune.training", "presets")
    assert all(what[-1] == "." for what in found.values()), "a line is a whole sentence"


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main([]) == 0
    assert list(listed(capsys)) == list(BUILTIN)


def test_the_folder_of_a_model_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--path", "smollm2-135m"]) == 0
    assert (Path(capsys.readouterr().out.removesuffix("\n")) / "config.json").is_file()
    with pytest.raises(InputError, match="did you mean smollm2-135m"):
        models.main(["--path", "smollm2-135n"])
