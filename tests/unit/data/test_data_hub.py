"""Rows in the data sets' own schemas, from local folders through the same call that reaches the hub."""

import hashlib
import json

import datasets
import pytest
from original_rows import ORIGINALS

from doratune.data.convert import convert_row
from doratune.data.examples import build_examples
from doratune.data.originals import hub_name
from doratune.data.source import load_split
from doratune.data.tasks import HubSource, Task, get_task
from doratune.errors import DoratuneError, InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def place(name: str) -> HubSource:
    hub = get_task(name).hub
    assert hub is not None
    return hub


def local(task: Task, folder, config=None) -> Task:
    """The task with its rows in a local folder."""
    assert task.hub is not None
    return task.model_copy(
        update={"hub": task.hub.model_copy(update={"path": str(folder), "config": config})}
    )


def write_splits(task: Task, folder, rows, kind: str) -> None:
    folder.mkdir()
    for split in set(place(task.name).splits.values()):
        if kind == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        else:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ORIGINALS)
def test_conversion(name):
    original, answer, part = ORIGINALS[name]
    row = convert_row(get_task(name), original, where="here")
    assert part in row["instruction"]
    assert (row["answer"], row["output"], row["input"]) == (answer, f"the correct answer is {answer}", "")
    (example,) = build_examples([row], source="here", fmt="instruct", task=get_task(name))
    assert example.labels[example.gold] == answer


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_loading_a_local_copy(name, kind, tmp_path):
    original, _, _ = ORIGINALS[name]
    task = local(get_task(name), tmp_path / "set")
    write_splits(task, tmp_path / "set", [original, original], kind)
    expected = convert_row(task, original, where="here")
    for split in ("train", "test"):
        loaded = load_split(task, split)
        assert loaded.rows == [expected, expected]
        assert loaded.source == f"{tmp_path / 'set'}:{place(name).splits[split]}"
        canonical = json.dumps(loaded.rows, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        assert loaded.sha256 == hashlib.sha256(canonical.encode()).hexdigest()


def test_train_and_test_are_the_splits_of_the_original_study(tmp_path):
    first, second = (
        {"sentence": f"_ is {i}.", "option1": "a", "option2": "b", "answer": "1"} for i in (1, 2)
    )
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(first))
    (folder / "validation.jsonl").write_text(json.dumps(second))
    (folder / "test.jsonl").write_text(json.dumps({**second, "answer": ""}))  # published without answers
    task = local(get_task("winogrande"), folder)
    assert "_ is 1." in load_split(task, "train").rows[0]["instruction"]
    assert "_ is 2." in load_split(task, "test").rows[0]["instruction"]


def test_the_configuration_is_chosen(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: [{split: train, path: main.jsonl}]\n"
        "- config_name: additional\n  data_files: [{split: train, path: additional.jsonl}]\n---\n"
    )
    for config in ("main", "additional"):
        (folder / f"{config}.jsonl").write_text(
            json.dumps({**ORIGINALS["openbookqa"][0], "question_stem": config})
        )
    loaded = load_split(local(get_task("openbookqa"), folder, "main"), "train")
    assert "question: main\n" in loaded.rows[0]["instruction"]


def test_a_file_is_taken_instead_of_the_hub(tmp_path):
    row = convert_row(get_task("boolq"), ORIGINALS["boolq"][0], where="here")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    loaded = load_split(get_task("boolq"), "test", data=path)
    assert (loaded.rows, loaded.source) == ([row], str(path))


def test_samples_are_generated(tmp_path):
    task = get_task("sample-boolq")
    loaded = load_split(task, "test")
    assert loaded.source == "built-in:sample-boolq"
    assert loaded == load_split(task, "test")
    assert loaded.sha256 != load_split(task, "train").sha256
    assert len(build_examples(loaded.rows, source=loaded.source, fmt="continuation", task=task)) == len(
        loaded.rows
    )


def test_the_name_of_a_place_on_the_hub():
    assert hub_name(place("winogrande"), "test") == "allenai/winogrande/winogrande_xl:validation"
    pinned = place("boolq").model_copy(update={"revision": "abc"})
    assert hub_name(pinned, "train") == "google/boolq@abc:train"


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach the Hub\nmore"), ValueError(""), RuntimeError("script")]
)
def test_a_hub_that_fails_gives_one_message(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DoratuneError) as caught:
        load_split(get_task("boolq"), "train")
    message = str(caught.value)
    assert "BoolQ" in message and "google/boolq:train" in message and "--data FILE" in message
    assert type(error).__name__ in message and "more" not in message
    assert caught.value.exit_code == 1


def test_a_folder_without_data_gives_the_same_message(tmp_path):
    with pytest.raises(DoratuneError, match="--data FILE"):
        load_split(local(get_task("boolq"), tmp_path / "none"), "train")


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("winogrande", {"answer": ""}, "column answer"),
        ("winogrande", {"option2": None}, "column option2"),
        ("hellaswag", {"label": "4"}, "0, 1, 2, 3"),
        ("hellaswag", {"endings": ["a", "b"]}, "number of options"),
        ("hellaswag", {"endings": ["a", "b", "c", None]}, "column endings"),
        ("arc-easy", {"choices": None}, "choices.text"),
        ("arc-easy", {"answerKey": "E"}, "A, B, C, D"),
        ("boolq", {"question": 3}, "column question"),
    ],
)
def test_rows_that_do_not_fit_are_refused(name, change, part):
    with pytest.raises(InputError) as caught:
        convert_row(get_task(name), {**ORIGINALS[name][0], **change}, where="set:train, row 5")
    assert "set:train, row 5" in str(caught.value) and part in str(caught.value)


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_missing_column_is_named(name):
    with pytest.raises(InputError, match="a column is missing"):
        convert_row(get_task(name), {"other": 1}, where="here")
