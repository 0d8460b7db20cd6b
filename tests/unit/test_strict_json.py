"""JSON whose objects have each key once."""

from __future__ import annotations

from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.strict_json import RepeatedKeyError, read_object, strict_loads


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_that_is_there_twice_is_refused_at_any_depth(text: str) -> None:
    with pytest.raises(RepeatedKeyError, match="'a' with the values 1, "):
        strict_loads(text)


def test_the_same_key_in_two_objects_is_no_repetition() -> None:
    assert strict_loads('[{"a": {"a": 1}}, {"a": 2}]') == [{"a": {"a": 1}}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"r": 4, "r": 8}', r"the file repeats a key\n.*\n.*the key 'r' with the values 4, 8"),
        ("[]", "the file is not a JSON object"),
        ("{", "the file cannot be read"),
        ("[" * 100_000, "the file cannot be read"),
    ],
)
def test_what_is_no_object_is_one_error(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_object(tmp_path / "a.json", "the file")


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_object(tmp_path / "a.json", "the file")
