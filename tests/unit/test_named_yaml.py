"""YAML files by name or path: those that are read, and one clear message for those that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from doratune.errors import InputError
from doratune.named_yaml import read_named


def read(tmp_path: Path, content: str) -> dict[str, Any]:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    values, source = read_named(
        str(path), kind="preset", where="--preset", package="doratune.training", folder="presets"
    )
    assert source == str(path)
    return values


REPEATED = {
    "rank: 8\nalpha: 16\nrank: 16\n": "line 3, column 1",
    "methods:\n  dora:\n    rank: 8\n    rank: 16\n": "line 4, column 5",
    "tasks: [{rank: 1, rank: 2}]": "line 1, column 19",
    'rank: 8\n"rank": 16\n': "line 2, column 1",
}


@pytest.mark.parametrize("content", REPEATED)
def test_a_repeated_key_is_refused_with_its_place(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert REPEATED[content] in caught.value.message and "'rank'" in caught.value.message


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    content = "base: &base {rank: 8, alpha: 16}\nmine:\n  <<: *base\n  rank: 16\n"
    assert read(tmp_path, content)["mine"] == {"rank": 16, "alpha": 16}
