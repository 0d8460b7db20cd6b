"""What a study's runs keep of what they were not trained on: also_test and the built-in text."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_support import PLAN, MadeUpRunner, Silent, opened

from doratune.errors import InputError
from doratune.records.study import StudyRecord
from doratune.report.markup import to_markdown
from doratune.report.page import page_of
from doratune.study.study import run_study

TASK = PLAN["tasks"][0]


def run(folder: Path, runner: MadeUpRunner, **changes: object) -> StudyRecord:
    return run_study(opened(folder, **changes), runner, Silent(), reproduce="doratune study plan.yaml")


def test_further_tasks_and_the_text_are_told_apart_from_the_verdicts(tmp_path: Path) -> None:
    runner = MadeUpRunner()
    record = run(tmp_path, runner, also_test=["sample-winogrande"])
    assert [cell.task for cell in record.cells] == ["sample-boolq"] and not record.pooled
    task, text = record.forgetting
    assert (task.about, task.measure, task.rows) == ("sample-winogrande", "accuracy", 40)
    assert (text.about, text.measure, text.rows) == ("plain-english", "nll_per_token", 2)
    # Made up: base 50 %, LoRA 60 and 65 %, DoRA 70 and 75 % with the two seeds; paired by row.
    assert task.base == 0.5 and [arm.seeds for arm in task.arms] == [[0, 1], [0, 1]]
    kept = {arm.name: arm for arm in task.arms}
    assert kept["lora"].value.mean == pytest.approx(0.625)
    assert kept["lora"].change is not None and kept["lora"].change.mean == pytest.approx(0.125)
    (pair,) = task.differences
    assert (pair.from_arm, pair.to_arm) == ("lora", "dora") and pair.difference.mean == pytest.approx(0.1)
    # 80 nats over 40 tokens of 4 bytes; LoRA loses a nat in each of two paragraphs, DoRA half a nat.
    assert text.base == pytest.approx(2.0) and text.bytes_per_token == 4
    assert [arm.value.mean for arm in text.arms] == pytest.approx([2.05, 2.025])
    assert [arm.change.mean for arm in text.arms if arm.change] == pytest.approx([0.05, 0.025])
    page = to_markdown(page_of(record))
    assert "Forgetting" in page and "sample-winogrande, accuracy" in page and "perplexity" in page
    # Nothing is left, and nothing is done twice.
    again = MadeUpRunner()
    assert run(tmp_path, again, also_test=["sample-winogrande"]).forgetting == record.forgetting
    assert again.jobs == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"also_test": ["sample-boolq"]}, "every training set of the plan"),
        ({"tasks": [TASK | {"also_test": ["sample-boolq"]}]}, "neither trained on nor tested"),
        ({"also_test": ["sample-bolq"]}, "sample-bolq"),
    ],
)
def test_also_test_is_for_other_tasks_that_are_known(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        opened(tmp_path, **changes)
