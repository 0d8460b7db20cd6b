"""What the verbs print: names of the user's own come out as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.table import Table

from doratune.cli.output import new_console, print_paths

NAMES = ["[red]x[/red]", "[/x]", ":smile:", "a[b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stderr", [False, True])
def test_a_name_is_not_read_as_markup(name: str, stderr: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console = new_console(stderr=stderr)
    print_paths([Path(name)], console)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    captured = capsys.readouterr()
    text = captured.err if stderr else captured.out
    assert text.count(name) == 4
