from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.records.folders import refuse_output
from doratune.records.storage import write_config


def test_output_that_can_be_written_to_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    write_config(tmp_path / "run", {})
    names = (
        "",
        ".",
        "new",
        "there",
        "there/new/newer",
        "link",
        "link/new",
        "там/　 ñ",
        "n" * 255,
        "adapter",
        "run/evaluations/adapter",
        tmp_path / "x",
    )
    for name in names:
        refuse_output(Path(name))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "run", "there"], "nothing is made"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file", "is a file"),
        ("file/below/it", "is a file"),
        ("nowhere", "leads nowhere"),
        ("nowhere/below", "leads nowhere"),
        ("circle/below", "leads nowhere"),
        ("n" * 256, "too long"),
        ("new/" + "ñ" * 128, "too long"),
        ("new/" * 1000, "too long"),
        ("run/adapter", "among a run's own files"),
        ("run/checkpoints/new/newer", "among a run's own files"),
        ("run/evaluations/../model", "among a run's own files"),
        ("link", "among a run's own files"),
        ("a\nb", "'\\\\n'"),
        ("a\0b", "'\\\\x00'"),
        ("a\udcffb", "'\\\\udcff'"),
    ],
)
def test_output_that_cannot_be_made_is_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    write_config(tmp_path / "run", {})
    (tmp_path / "run" / "predictions").mkdir()
    (tmp_path / "link").symlink_to("run/predictions")
    with pytest.raises(InputError, match=said) as caught:
        refuse_output(Path(name))
    assert "--output" in caught.value.message and len(caught.value.message.splitlines()) < 5
    assert "\0" not in caught.value.message


@pytest.mark.parametrize("name", ["shut", "shut/new"])
def test_output_without_permission_is_refused(name: str, tmp_path: Path) -> None:
    """Asked in a process of a user who may not write there: root may, anywhere."""
    (tmp_path / "shut").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    code = (
        "import os, pathlib, sys\n"
        "from doratune.errors import InputError\n"
        "from doratune.records.folders import refuse_output\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: refuse_output(pathlib.Path(sys.argv[1]))\n"
        "except InputError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "may not be written to" in done.stdout and "got: shut\n" in done.stdout
