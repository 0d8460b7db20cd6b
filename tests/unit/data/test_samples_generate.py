"""The built-in samples as data files: layout, size, determinism, balance and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from doratune.data.samples import SAMPLE_TASKS, generate
from doratune.errors import InputError

ANSWERS = {
    "sample-boolq": ["true", "false"],
    "sample-hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "sample-winogrande": ["option1", "option2"],
}
# The LLM-Adapters wording of the three real tasks, as regular expressions over a whole instruction.
WORDING = {
    "sample-boolq": r"Please answer the following question with true or false, question: [^?\n]+\?\n\n"
    r"Answer format: true/false",
    "sample-hellaswag": r"Please choose the correct ending to complete the given sentence: [^\n]+\n\n"
    r"Ending1: [^\n]+ Ending2: [^\n]+ Ending3: [^\n]+ Ending4: [^\n]+\n\n"
    r"Answer format: ending1/ending2/ending3/ending4",
    "sample-winogrande": r"Please choose the correct answer to fill in the blank to complete the given "
    r"sentence: [^\n_]+_\.\n\nOption1: \w+ Option2: \w+ Answer format: option1/option2",
}
# SHA-256 of the rows as compact JSON: changing the samples changes every result on them.
DIGESTS = {
    ("sample-boolq", "train"): "5788c7111714caeec56784dd898cc6d2b9427cc8e42a65833dd651a9373daa2a",
    ("sample-boolq", "test"): "8d8b3661d91f19244079c30a7b86e68a1ddc1c1fc2c42196ac8f70408ea49572",
    ("sample-hellaswag", "train"): "ae4f54e0c8a3246490f649760458d8478c64b80e230b02fa60f042d131eac0fb",
    ("sample-hellaswag", "test"): "56df1e842b2df7880c5f4356f9d4c44635035aa3900096da1608020c5ee97e42",
    ("sample-winogrande", "train"): "e9647c96e44095809f2af76858e3f0da76a90a42cf5bf25feb9f2f2cd41183ba",
    ("sample-winogrande", "test"): "12ebbab0899fddb767a1a76c48092ee30adf750a846413cf711c1390b4735dde",
}
EVERY = [(task, split) for task in ANSWERS for split in ("train", "test")]


def digest(rows: list[dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def test_names_are_the_three_samples():
    assert set(SAMPLE_TASKS) == set(ANSWERS)


@pytest.mark.parametrize(("task", "split"), EVERY)
def test_rows_have_the_layout_and_wording_of_the_real_task(task, split):
    rows = generate(task, split)
    assert len(rows) == {"train": 2000, "test": 400}[split]
    for row in rows:
        assert list(row) == ["instruction", "input", "output", "answer"]
        assert row["input"] == ""
        assert row["answer"] in ANSWERS[task]
        assert row["output"] == f"the correct answer is {row['answer']}"
        assert re.fullmatch(WORDING[task], row["instruction"]), row["instruction"]
        assert row["instruction"].isascii()
        assert len(row["instruction"].split()) <= 70


@pytest.mark.parametrize("task", ANSWERS)
def test_no_row_appears_twice_in_either_split(task):
    instructions = [row["instruction"] for split in ("train", "test") for row in generate(task, split)]
    assert len(set(instructions)) == len(instructions) == 2400


@pytest.mark.parametrize(("task", "split"), EVERY)
def test_every_block_of_rows_holds_every_answer_once(task, split):
    rows, answers = generate(task, split), ANSWERS[task]
    for start in range(0, len(rows), len(answers)):
        assert sorted(row["answer"] for row in rows[start : start + len(answers)]) == sorted(answers)
    places = Counter(i % len(answers) for i, row in enumerate(rows) if row["answer"] == answers[0])
    assert len(places) == len(answers), "the order of the answers within a block must not repeat"


@pytest.mark.parametrize(("task", "split"), EVERY)
def test_rows_are_the_pinned_ones(task, split):
    assert digest(generate(task, split)) == DIGESTS[task, split]


def test_rows_do_not_depend_on_the_hash_seed():
    code = (
        "import hashlib, json; from doratune.data.samples import SAMPLE_TASKS, generate; "
        "rows = [generate(t, s) for t in SAMPLE_TASKS for s in ('train', 'test')]; "
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    seen = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="sample-boolq") as caught:
        generate("sample-bolq", "train")
    assert "did you mean sample-boolq?" in str(caught.value)


def test_unknown_split_is_refused():
    with pytest.raises(InputError, match="validation"):
        generate("sample-boolq", "validation")
