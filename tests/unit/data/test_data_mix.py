"""The commonsense mix, from local files in the data sets' own schemas."""

import json
import random
from collections import Counter
from pathlib import Path

import datasets
import pytest
from original_rows import ORIGINALS
from test_data_real import existing

from doratune.data.convert import convert_row
from doratune.data.examples import build_examples, build_mixed_examples
from doratune.data.mix import MIXED, load_mix, without_mix
from doratune.data.source import LoadedData, rows_sha256
from doratune.data.tasks import get_task, task_names
from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.evaluate import evaluate
from doratune.records.run import DataRecord
from doratune.training.config import TrainConfig
from doratune.training.data import load_training_examples

# A column of each schema that may hold any text.
FREE = {
    "boolq": "question",
    "piqa": "goal",
    "social_i_qa": "context",
    "hellaswag": "ctx",
    "winogrande": "sentence",
    "arc-easy": "question",
    "arc-challenge": "question",
    "openbookqa": "question_stem",
}
COUNTS = {name: 3 + number for number, name in enumerate(MIXED)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def originals(name: str) -> list[dict]:
    """As many different rows of a data set as COUNTS says."""
    first = ORIGINALS[name][0]
    return [{**first, FREE[name]: f"{first[FREE[name]]} {i} of {name}"} for i in range(COUNTS[name])]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, rows: dict[str, list[dict]]) -> Path:
    folder.mkdir()
    for name in MIXED:
        (folder / f"{name}.jsonl").write_text(lines(rows[name]))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "originals", {name: originals(name) for name in MIXED})


def test_the_mix_is_all_benchmark_tasks():
    assert set(MIXED) == {name for name in task_names() if get_task(name).hub is not None}
    assert len(set(MIXED)) == 8


def test_every_row_of_every_task_is_there_under_its_task(folder):
    mix = load_mix(folder)
    expected = [
        (name, convert_row(get_task(name), row, where="here")) for name in MIXED for row in originals(name)
    ]
    found = list(zip(mix.tasks, mix.rows, strict=True))
    assert len(found) == len(expected) == sum(COUNTS.values())
    assert all(pair in expected for pair in found) and all(pair in found for pair in expected)
    assert mix.counts == COUNTS and mix.duplicates == 0
    assert isinstance(mix, LoadedData) and mix.source == str(folder)
    assert mix.sha256 == rows_sha256(mix.rows)


def test_order_does_not_depend_on_the_files_order_and_mixes_the_tasks(folder, tmp_path):
    shuffled = {name: random.Random(1).sample(originals(name), COUNTS[name]) for name in MIXED}
    mix, other = load_mix(folder), load_mix(write(tmp_path / "shuffled", shuffled))
    assert (other.rows, other.tasks, other.sha256) == (mix.rows, mix.tasks, mix.sha256)
    blocks = sum(one != after for one, after in zip(mix.tasks, mix.tasks[1:], strict=False))
    assert blocks > 2 * len(MIXED)  # task after task there would be 7 changes


def test_one_row_more_leaves_the_order_of_the_others(folder, tmp_path):
    more = {name: originals(name) for name in MIXED}
    more["piqa"].insert(1, {**more["piqa"][0], "goal": "new"})
    mix, larger = load_mix(folder), load_mix(write(tmp_path / "more", more))
    assert [row for row in larger.rows if "new" not in row["instruction"]] == mix.rows
    assert larger.counts == {**COUNTS, "piqa": COUNTS["piqa"] + 1} and larger.sha256 != mix.sha256


def test_repeated_rows_come_once(folder, tmp_path):
    repeated = {name: originals(name) for name in MIXED}
    # As in the published file: the smaller sizes before the largest one, which holds them.
    repeated["winogrande"] = repeated["winogrande"][:2] + repeated["winogrande"][:4] + repeated["winogrande"]
    # Without its passage a question of BoolQ can come twice; with the other answer it is another row.
    repeated["boolq"] += [
        {**repeated["boolq"][0], "passage": "Another."},
        {**repeated["boolq"][1], "answer": True},
    ]
    mix, clean = load_mix(write(tmp_path / "repeated", repeated)), load_mix(folder)
    assert mix.duplicates == 7 and len(mix.rows) == len(clean.rows) + 1
    assert mix.counts == {**COUNTS, "boolq": COUNTS["boolq"] + 1}
    assert max(Counter(map(rows_sha256, ([row] for row in mix.rows))).values()) == 1


def test_files_and_copies_of_the_hub_s_folders_are_the_same(folder, tmp_path):
    other = tmp_path / "copies"
    other.mkdir()
    (other / "boolq.json").write_text(lines(originals("boolq")))
    datasets.Dataset.from_list(originals("piqa")).to_parquet(other / "piqa.parquet")
    for name in ("social_i_qa", "hellaswag", "ARC-Easy", "arc-challenge"):
        rows = datasets.Dataset.from_list(originals(name.lower()))
        rows.to_parquet(other / name / "train-00000-of-00001.parquet")
    for name, config in (("winogrande", "winogrande_xl"), ("openbookqa", "main")):
        (other / name / config).mkdir(parents=True)
        (other / name / "README.md").write_text(
            f"---\nconfigs:\n- config_name: small\n  data_files: [{{split: train, path: small.parquet}}]\n"
            f"- config_name: {config}\n  data_files: [{{split: train, path: {config}/train-*}}]\n---\n"
        )
        datasets.Dataset.from_list(originals(name)[:1]).to_parquet(other / name / "small.parquet")
        datasets.Dataset.from_list(originals(name)).to_parquet(other / name / config / "train-0.parquet")
    mix, copied = load_mix(folder), load_mix(other)
    assert (copied.rows, copied.tasks, copied.sha256) == (mix.rows, mix.tasks, mix.sha256)


def test_only_the_training_split_of_a_copy_is_taken(folder):
    (folder / "piqa.jsonl").unlink()
    (folder / "piqa").mkdir()
    for split, rows in (
        ("train", originals("piqa")),
        ("validation", [{**ORIGINALS["piqa"][0], "goal": "no"}]),
    ):
        (folder / "piqa" / f"{split}.jsonl").write_text(lines(rows))
    mix = load_mix(folder)
    assert mix.counts == COUNTS and not any("question: no\n" in row["instruction"] for row in mix.rows)


def test_the_hub_is_asked_for_the_training_split_of_each_task(folder, monkeypatch):
    asked = []
    local = load_mix(folder)

    def from_hub(path, config=None, *, split, revision=None):
        asked.append((path, config, split))
        places = {task.hub.path + (task.hub.config or ""): name for name, task in known.items() if task.hub}
        return datasets.Dataset.from_list(originals(places[path + (config or "")]))

    known = {name: get_task(name) for name in MIXED}
    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    mix = load_mix()
    assert (mix.rows, mix.tasks, mix.sha256, mix.source) == (
        local.rows,
        local.tasks,
        local.sha256,
        "hub:commonsense-mix",
    )
    assert len(asked) == 8 and {split for *_, split in asked} == {"train"}
    assert ("allenai/winogrande", "winogrande_xl", "train") in asked


def test_examples_are_those_of_each_task(folder):
    mix = load_mix(folder)
    for fmt in ("instruct", "continuation"):
        examples = build_mixed_examples(mix, fmt=fmt)
        for index, (example, row, name) in enumerate(zip(examples, mix.rows, mix.tasks, strict=True)):
            (alone,) = build_examples([row], source="here", fmt=fmt, task=get_task(name))
            assert (example.row, example.task) == (index, name)
            assert (example.prompt, example.candidates) == (alone.prompt, alone.candidates)
            assert (example.labels, example.gold) == (alone.labels, alone.gold)


def training(**changes) -> TrainConfig:
    return TrainConfig(**{"task": ["commonsense-mix"], "output": Path("unused"), **changes})


def test_training_on_it(folder):
    examples, records = load_training_examples(training(data=folder))
    mix = load_mix(folder)
    assert [example.task for example in examples] == mix.tasks
    assert records == [
        DataRecord(
            task="commonsense-mix",
            source=str(folder),
            split="train",
            sha256=mix.sha256,
            rows=sum(COUNTS.values()),
            parts=COUNTS,
        )
    ]
    texts = {
        one.candidates[one.gold]
        for one in load_training_examples(training(data=folder, format="continuation"))[0]
    }
    assert "knife" in texts and "answer1" not in texts
    assert len(load_training_examples(training(data=folder, rows=10, task=["Commonsense-Mix"]))[0]) == 10


def test_a_record_of_another_run_has_no_parts(tmp_path):
    _, records = load_training_examples(training(task=["sample-boolq"]))
    assert [record.parts for record in records] == [None]


def test_evaluating_it_is_evaluating_its_tasks(monkeypatch, tiny_model, tmp_path):
    def load(task, split, *, data=None):
        assert split == "test"
        rows = [convert_row(task, row, where="here") for row in originals(task.name)]
        return LoadedData(rows, f"hub of {task.name}", rows_sha256(rows))

    monkeypatch.setattr("doratune.evaluation.evaluate.load_split", load)
    config = EvalConfig(
        target=str(tiny_model), task=["commonsense-mix", "piqa"], output=tmp_path / "out", dtype="float32"
    )
    assert {one.task: one.rows for one in evaluate(config).evaluations} == COUNTS
    assert without_mix(["boolq", "Commonsense-Mix"]) == ["boolq", *MIXED]


@pytest.mark.parametrize(
    ("break_it", "parts"),
    [
        (lambda folder: (folder / "piqa.jsonl").unlink(), ["no rows of PIQA", "piqa.parquet"]),
        (lambda folder: (folder / "piqa.json").write_text("{}"), ["several files", "piqa.json, piqa.jsonl"]),
        (lambda folder: (folder / "piqa.jsonl").write_text('{"goal": '), ["piqa.jsonl", "cannot be read"]),
        (lambda folder: (folder / "piqa.jsonl").write_text('{"goal": "x"}'), ["row 1", "column", "sol1"]),
        (
            lambda folder: (folder / "piqa.jsonl").write_text(lines([{**ORIGINALS["piqa"][0], "label": -1}])),
            ["row 1, column label", "not one of its options"],
        ),
    ],
)
def test_a_folder_that_cannot_be_used(folder, break_it, parts):
    break_it(folder)
    with pytest.raises(InputError) as caught:
        load_mix(folder)
    assert all(part in str(caught.value) for part in parts)


def test_a_file_is_refused_as_a_folder(boolq_rows, tmp_path):
    for place in (boolq_rows, tmp_path / "none"):
        with pytest.raises(InputError, match="read from a folder"):
            load_mix(place)


def test_real_winogrande_in_its_own_schema_becomes_the_field_s_rows(folder):
    text = existing("original/winogrande_train_s.jsonl").read_text(encoding="utf-8")
    (folder / "winogrande.jsonl").write_text(text, encoding="utf-8")
    columns = ("sentence", "option1", "option2", "answer")
    different = {tuple(json.loads(line)[column] for column in columns) for line in text.splitlines()}
    field = json.loads(existing("winogrande/train.json").read_text(encoding="utf-8"))
    texts = {(row["instruction"], row["output"], row["answer"]) for row in field}
    mix = load_mix(folder)
    mixed = [row for row, name in zip(mix.rows, mix.tasks, strict=True) if name == "winogrande"]
    assert len(mixed) == len(different) == 640 - mix.duplicates
    assert mix.duplicates == 2  # the data set repeats rows inside one size, too
    assert {(row["instruction"], row["output"], row["answer"]) for row in mixed} <= texts


@pytest.mark.parametrize("names", [["sample-boolq", "Sample-BoolQ"], ["commonsense-mix", "boolq"]])
def test_training_refuses_a_task_that_is_named_twice(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"named twice(.|\n)*boolq"):
        load_training_examples(training(task=names))
