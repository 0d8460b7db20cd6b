"""Real benchmark rows in the LLM-Adapters layout, where they are at hand."""

import json
import os
from pathlib import Path

import pytest

from doratune.data.convert import convert_row
from doratune.data.examples import build_examples
from doratune.data.source import load_file
from doratune.data.tasks import get_task

FOLDER = Path(
    os.environ.get("DORATUNE_DATA") or Path(__file__).resolve().parents[3].parent / "shared" / "data"
)
FILES = {
    "ARC-Easy/train": 2251,
    "ARC-Easy/test": 2376,
    "boolq/train": 9427,
    "boolq/test": 3270,
    "hellaswag/train": 8042,
    "hellaswag/test": 2000,
    "winogrande/train": 10234,
    "winogrande/test": 1267,
    "piqa/test": 1838,
}


def existing(name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"no {name} among the shared data (set DORATUNE_DATA to its folder)")
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_rendered_again_byte_for_byte(name):
    rows = load_file(existing(f"{name}.json")).rows
    layout = get_task(name.split("/")[0]).layout
    assert len(rows) == FILES[name]
    for row in rows:
        question = layout.parse(row["instruction"])
        assert question is not None, row
        assert layout.render(question) == row["instruction"]


@pytest.mark.parametrize("name", FILES)
def test_every_row_has_different_candidates_in_both_formats(name):
    loaded = load_file(existing(f"{name}.json"))
    for fmt in ("instruct", "continuation"):
        examples = build_examples(
            loaded.rows, source=loaded.source, fmt=fmt, task=get_task(name.split("/")[0])
        )
        for row, example in zip(loaded.rows, examples, strict=True):
            assert example.labels[example.gold] == row["answer"]
            assert all(example.candidates) and len(set(example.candidates)) == len(example.labels)
            if fmt == "instruct":
                assert example.candidates[example.gold] == row["output"]
            elif not name.startswith(("boolq", "hellaswag")):  # the one has no texts, the other cleans them
                assert f" {example.candidates[example.gold]}" in row["instruction"]


def test_winogrande_s_own_schema_becomes_the_field_s_rows():
    lines = existing("original/winogrande_train_s.jsonl").read_text(encoding="utf-8").splitlines()
    originals = [json.loads(line) for line in lines]
    field = {(row["instruction"], row["answer"]) for row in load_file(existing("winogrande/train.json")).rows}
    converted = [convert_row(get_task("winogrande"), original, where="here") for original in originals]
    assert len(converted) == 640
    assert {(row["instruction"], row["answer"]) for row in converted} <= field
