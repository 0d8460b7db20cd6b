from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.records.files import read_jsonl, write_json_atomic, write_jsonl_atomic, write_text_atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, {"a": math.nan})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_lines_round_trip(tmp_path: Path) -> None:
    rows = [{"row": 0, "text": "a\u2028b\nc"}, {"row": 1, "text": None}]
    write_jsonl_atomic(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    (tmp_path / "a.jsonl").write_text('{"row": 0}\n\n[1]\n')
    with pytest.raises(InputError, match=r"line 3(.|\n)*list"):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_long_name_leaves_room_for_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / ("ñ" * 120 + ".json")
    write_text_atomic(path, "x")
    assert path.read_text() == "x" and list(tmp_path.iterdir()) == [path]
