"""Whatever a file holds, it is refused in one message or read as what it says."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_support import PLAN

from doratune.data.examples import build_examples
from doratune.data.layouts import Layout, Question, layouts
from doratune.data.reader import read_rows
from doratune.data.rows import make_row
from doratune.data.tasks import get_task, task_names
from doratune.errors import InputError
from doratune.records.files import read_jsonl
from doratune.records.storage import read_record, read_study, training_curve
from doratune.settings import validate
from doratune.study.plan_file import load_plan
from doratune.training.config import TrainConfig
from doratune.training.presets import load_preset

tried = settings(
    max_examples=60,
    deadline=timedelta(seconds=5),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

KEYS = ["instruction", "input", "output", "answer"]
TEXTS = st.text(max_size=30)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXTS,
    st.sampled_from(["../../up", "\ud800", "[red]"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def used(read: Callable[[], Any]) -> Any:
    """What is read; None if it is refused in one message of some lines."""
    try:
        return read()
    except InputError as error:
        assert error.exit_code == 2
        assert len(error.message) < 5000
        return None


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A copy in which one value, somewhere inside, is another, is gone, or has company."""
    copied = copy.deepcopy(whole)
    place, key = copied, None
    while True:
        if isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place, key=str)))
        elif isinstance(place, list) and place:
            key = draw(st.integers(0, len(place) - 1))
        else:
            break
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner) or draw(st.booleans()):
            break
        place = inner
    how = draw(st.sampled_from(["other", "other", "gone", "more"]))
    if how == "gone":
        del place[key]
    elif how == "other":
        place[key] = draw(VALUES)
    elif isinstance(place, dict):
        place[draw(TEXTS)] = draw(VALUES)
    else:
        place.append(draw(VALUES))
    return copied


# Data rows

ROWS = [make_row("Is it so?", "true"), make_row("Is it not?", "false")]


@tried
@given(rows=st.one_of(VALUES, changed(ROWS), st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES))))
@pytest.mark.parametrize("lines", [False, True])
def test_rows_are_those_of_the_file(tmp_path: Path, lines: bool, rows: Any) -> None:
    path = tmp_path / "rows.json"
    whole = rows if isinstance(rows, list) and lines else [rows]
    path.write_text("\n".join(map(json.dumps, whole)))
    found = used(lambda: read_rows(path))
    if found is not None:
        held = whole if len(whole) > 1 or not isinstance(whole[0], list) else whole[0]
        assert found == [{key: row.get(key, "") for key in KEYS} for row in held]


@tried
@given(content=st.one_of(st.binary(max_size=60), st.text(alphabet='[]{}",:\\u0 \nae1', max_size=60)))
def test_any_bytes_as_rows(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    used(lambda: read_rows(path))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[" + "9" * 10_000 + "]", '[{"a": ' * 400 + "1" + "}]" * 400]
)
def test_extreme_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert used(lambda: read_rows(path)) is None


OPTION = st.lists(
    st.sampled_from(
        ["a", "b ", "Answer2: ", " Answer1: ", "\n\n", "Solution2: ", "Option2: ", "Ending2: ", "1/"]
    ),
    min_size=1,
    max_size=4,
).map("".join)
TASKS = [get_task(name) for name in task_names()]


@tried
@given(data=st.data(), task=st.sampled_from(TASKS), stem=OPTION)
def test_a_question_comes_back_from_its_instruction_or_is_refused(data: Any, task: Any, stem: str) -> None:
    layout: Layout = task.layout
    options = data.draw(st.lists(OPTION, min_size=layout.fewest, max_size=len(layout.labels)))
    if layout.option is None:
        options = layout.labels[: len(options)]
    asked = Question(stem, tuple(options))
    row = make_row(layout.render(asked), layout.labels[0])

    def built() -> Any:
        return build_examples([row], source="rows", fmt="continuation", task=task)[0]

    example = used(built)
    if example is not None:
        assert example.candidates == layout.continue_from(asked).options


@tried
@given(
    row=changed(ROWS[0]),
    task=st.sampled_from([None, *TASKS]),
    fmt=st.sampled_from(["instruct", "continuation"]),
)
def test_any_row_as_an_example(tmp_path: Path, row: Any, task: Any, fmt: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    rows = used(lambda: read_rows(path))
    if rows is not None:
        used(lambda: build_examples(rows, source="rows", fmt=fmt, task=task))


def test_no_wording_takes_long_to_clean() -> None:
    for layout in layouts().values():
        for text in ("[" * 20_000, " " * 20_000, "[title" * 4_000):
            layout.continue_from(Question(text, (text,)))


# Plans and presets


@tried
@given(values=st.one_of(changed(PLAN), changed(PLAN).flatmap(changed)))
def test_a_plan_is_what_its_file_says(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    plan = used(lambda: load_plan(str(path)))
    if plan is not None:
        written = plan.model_dump(mode="json")
        for key in set(values) - {"tasks"}:
            given = values[key]
            # A plan may leave out parts of how it chooses; the others have their defaults.
            found = {name: written[key][name] for name in given} if key == "choose" else written[key]
            assert found == given


PRESET = {
    "include": "llama-7b",
    "rank": 8,
    "learning_rate": 1e-3,
    "methods": {"dora": {"rank": 4}},
    "compare": {"eval_rows": 5},
}


@tried
@given(values=st.one_of(VALUES, changed(PRESET), changed(PRESET).flatmap(changed)))
def test_a_preset_is_what_its_file_says(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump(values))

    def read() -> TrainConfig:
        preset = load_preset(str(path))
        return validate(TrainConfig, {**preset.for_method("lora"), "output": "run"}, where=preset.source)

    config = used(read)
    if config is not None:
        for key in {"rank", "learning_rate"} & set(values):
            assert getattr(config, key) == values[key] and math.isfinite(values[key])


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
EXTREME = {
    "aliases that grow": ALIASES + "rank: *a59\nmethods: [*a59]\n",
    "an alias of itself": "rank: &a [*a]\nmethods: &b {dora: *b}\n",
    "brackets": "[" * 2000,
    "no day": "rank: 2024-02-40\n",
    "a long number": f"rank: {'9' * 10_000}\n",
    "not a number": "learning_rate: .nan\nlearning_rates: [.nan]\n",
    "infinite": "learning_rate: .inf\nlearning_rates: [.inf]\n",
    "other keys": "1: 2\n? [a]\n: 3\n",
    "a tag": "rank: !!python/object:os.system x\n",
    "null": "methods: null\ncompare: null\n",
    "an unknown method": "methods: {dorra: {rank: 3}}\n",
    "an include of many": "include: [demo, llama-7b]\n",
    "not UTF-8": b"rank: \xff\n",
    "control characters": "rank: \x00\n",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("content", EXTREME.values(), ids=EXTREME)
def test_extreme_yaml(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "extreme.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def preset() -> TrainConfig:
        found = load_preset(str(path))
        return validate(TrainConfig, {**found.settings, "output": "run"}, where=found.source)

    assert used(preset) is None
    assert used(lambda: load_plan(str(path))) is None


def test_a_preset_that_includes_itself(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"include: {tmp_path / other}.yaml\n")
    with pytest.raises(InputError, match="includes itself"):
        load_preset(str(tmp_path / "a.yaml"))


# Records

RECORD = synthetic_runs.record("dora", [synthetic_runs.evaluation("sample-boolq", [True, False])])


@tried
@given(record=st.one_of(VALUES, changed(RECORD)))
def test_any_record(tmp_path: Path, record: Any) -> None:
    for name in ("record.json", "study.json"):
        (tmp_path / name).write_text(json.dumps(record))
    used(lambda: read_record(tmp_path))
    used(lambda: read_study(tmp_path / "study.json"))


@tried
@given(lines=st.lists(st.one_of(VALUES, st.fixed_dictionaries({"step": VALUES, "loss": VALUES})), max_size=3))
def test_any_metrics(tmp_path: Path, lines: list[Any]) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    used(lambda: training_curve(tmp_path))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 10_000 + "}"])
def test_extreme_records(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    assert used(lambda: read_record(tmp_path)) is None
    assert used(lambda: read_jsonl(tmp_path / "record.json")) is None
