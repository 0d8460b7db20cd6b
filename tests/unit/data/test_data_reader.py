"""Data files: what is read, and one clear message for everything that cannot be."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from doratune.data.reader import read_rows
from doratune.data.source import load_file
from doratune.errors import InputError
from doratune.records.files import file_sha256

ROW = {"instruction": "Say yes.", "input": "", "output": "yes", "answer": "yes"}


def written(tmp_path: Path, content: str | bytes, name: str = "rows.json") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_rows(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return caught.value


def test_an_array_and_its_lines_hold_the_same_rows(tmp_path):
    rows = [ROW, {**ROW, "instruction": "Line 1\nline 2\u2028\u0085 ünï", "input": "context"}]
    array = written(tmp_path, json.dumps(rows, indent=2))
    lines = written(
        tmp_path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", "rows.jsonl"
    )
    assert read_rows(array) == read_rows(lines) == rows


def test_the_name_of_a_file_does_not_decide_its_format(tmp_path):
    assert read_rows(written(tmp_path, json.dumps(ROW) + "\n" + json.dumps(ROW), "rows.json")) == [ROW, ROW]
    assert read_rows(written(tmp_path, json.dumps([ROW]), "rows.jsonl")) == [ROW]


@pytest.mark.parametrize("before", ["\ufeff", "\n \n", "\r\n"])
def test_a_byte_order_mark_and_blank_lines_are_harmless(tmp_path, before):
    assert (
        read_rows(written(tmp_path, before + json.dumps(ROW) + "\r\n\r\n" + json.dumps(ROW) + "\r\n"))
        == [ROW] * 2
    )


def test_a_missing_input_is_empty_and_other_keys_are_left_out(tmp_path):
    row = {key: value for key, value in ROW.items() if key != "input"}
    assert read_rows(written(tmp_path, json.dumps([{**row, "id": 7}]))) == [ROW]


def test_missing_file(tmp_path):
    assert "no such data file" in str(refused(tmp_path / "none.json"))


def test_a_folder(tmp_path):
    assert "folder" in str(refused(tmp_path))


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = written(tmp_path, json.dumps([ROW]))

    def deny(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    message = str(refused(path))
    assert "cannot be read" in message and "Permission denied" in message


def test_not_utf8_names_the_byte(tmp_path):
    message = str(refused(written(tmp_path, b'[{"a": "\xe9"}]')))
    assert "not UTF-8" in message and "byte 8" in message and "0xe9" in message


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file(tmp_path, content):
    assert "empty" in str(refused(written(tmp_path, content)))


def test_an_empty_array(tmp_path):
    assert "no rows" in str(refused(written(tmp_path, "[]")))


def test_malformed_json_names_line_and_column(tmp_path):
    path = written(tmp_path, '[\n  {"instruction": "a",\n   "output" "b"}\n]')
    assert f"{path}, line 3, column 13" in str(refused(path))


def test_a_truncated_array_names_its_end(tmp_path):
    path = written(tmp_path, '[{"instruction": "a"},')
    assert f"{path}, line 1, column 23" in str(refused(path))


def test_malformed_lines_name_the_line_of_the_file(tmp_path):
    path = written(tmp_path, json.dumps(ROW) + '\n\n{"instruction": }\n')
    assert f"{path}, line 3, column 17" in str(refused(path))


@pytest.mark.parametrize("content", ['"text"', "12", "null"])
def test_json_that_is_neither_array_nor_lines(tmp_path, content):
    message = str(refused(written(tmp_path, content)))
    assert "neither a JSON array nor JSON lines" in message and content in message


@pytest.mark.parametrize("content", ["[" * 100_000, "[" + "9" * 5000 + "]"])
def test_json_that_python_gives_up_on(tmp_path, content):
    assert "cannot be read" in str(refused(written(tmp_path, content)))


@pytest.mark.parametrize("value", [[1], "x", None, 3.5])
def test_a_row_that_is_not_an_object(tmp_path, value):
    path = written(tmp_path, json.dumps([ROW, value]))
    assert f"{path}, row 2" in str(refused(path))


@pytest.mark.parametrize("key", ["instruction", "output", "answer"])
def test_a_row_without_a_key(tmp_path, key):
    row = {name: value for name, value in ROW.items() if name != key}
    message = str(refused(written(tmp_path, json.dumps([ROW, ROW, row]))))
    assert f"no '{key}'" in message and "row 3" in message


@pytest.mark.parametrize("key", ["instruction", "input", "output", "answer"])
@pytest.mark.parametrize("value", [True, None, 1, ["yes"]])
def test_a_value_that_is_not_text(tmp_path, key, value):
    message = str(refused(written(tmp_path, json.dumps([ROW, {**ROW, key: value}]))))
    assert f"'{key}' is not text" in message and "row 2" in message and json.dumps(value) in message


@pytest.mark.parametrize("key", ["instruction", "output", "answer"])
def test_an_empty_value(tmp_path, key):
    message = str(refused(written(tmp_path, json.dumps([{**ROW, key: " "}]))))
    assert f"'{key}' is empty" in message and "row 1" in message


def test_half_of_a_surrogate_pair(tmp_path):
    message = str(refused(written(tmp_path, '[{"instruction": "\\ud800", "output": "a", "answer": "a"}]')))
    assert "not valid Unicode" in message and "row 1" in message


@pytest.mark.parametrize("layout", ["[{}, {}]", "{}\n{}"])
def test_a_repeated_key(tmp_path, layout):
    twice = json.dumps(ROW)[:-1] + ', "answer": "no"}'
    message = str(refused(written(tmp_path, layout.format(json.dumps(ROW), twice))))
    assert "row 2" in message and '\'answer\' with the values "yes", "no"' in message


def test_a_long_value_is_shortened_in_the_message(tmp_path):
    assert len(str(refused(written(tmp_path, json.dumps(["x" * 10_000]))))) < 500


def test_the_hash_is_of_the_bytes(tmp_path):
    content = json.dumps([ROW]).encode()
    path = written(tmp_path, content)
    loaded = load_file(path)
    assert loaded.sha256 == file_sha256(path) == hashlib.sha256(content).hexdigest()
    assert (loaded.rows, loaded.source) == ([ROW], str(path))


def test_a_pipe_is_refused(tmp_path):
    """It can be read once, and its hash would be that of nothing."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="not a regular file"):
        read_rows(path)
