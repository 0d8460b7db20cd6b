"""What makes a result doubtful is said, in every rendering, and nothing is said of a result that is sound."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console
from synthetic_study import comparison, study

from doratune.records.run import ChangeRecord
from doratune.records.study import MostGiven, SeedRun, StudyCell, StudyRecord, Trial
from doratune.report.cautions import cautions
from doratune.report.markup import to_html, to_markdown
from doratune.report.page import page_of
from doratune.report.terminal import print_summary
from doratune.report.view import view_of


def told(record: StudyRecord) -> list[str]:
    return cautions(view_of(record))


def changed(record: StudyRecord, change: Callable[[StudyCell], dict[str, Any]]) -> StudyRecord:
    cells = [cell.model_copy(update=change(cell)) for cell in record.cells]
    return record.model_copy(update={"cells": cells})


def with_runs(record: StudyRecord, arm: str, change: Callable[[SeedRun], dict[str, Any]]) -> StudyRecord:
    """One arm's runs changed."""

    def arms(cell: StudyCell) -> dict[str, Any]:
        return {
            "arms": [
                one.model_copy(update={"runs": [run.model_copy(update=change(run)) for run in one.runs]})
                if one.name == arm
                else one
                for one in cell.arms
            ]
        }

    return changed(record, arms)


def with_same(record: StudyRecord, missing: int, seeds: Sequence[int] = range(9)) -> StudyRecord:
    """Every pair agrees, with some seeds, on all rows but so many."""

    def differences(cell: StudyCell) -> dict[str, Any]:
        same = {"same_answers": cell.rows - missing}
        return {
            "differences": [
                one.model_copy(
                    update={
                        "seeds": [
                            seed.model_copy(update=same) if seed.seed in seeds else seed for seed in one.seeds
                        ]
                    }
                )
                for one in cell.differences
            ]
        }

    return changed(record, differences)


def moved(**largest: float) -> Callable[[SeedRun], dict[str, Any]]:
    changes = {
        kind: ChangeRecord(largest=value, rms=value / 2, elements=8, of=8) for kind, value in largest.items()
    }

    def change(run: SeedRun) -> dict[str, Any]:
        assert run.training is not None
        return {"training": run.training.model_copy(update={"changes": changes})}

    return change


@pytest.mark.parametrize("record", [study(), comparison()])
def test_sound_results_are_left_alone(record: StudyRecord) -> None:
    assert told(record) == []
    sound = with_same(with_runs(record, "dora", moved(A=1e-4, B=1e-3, m=1e-5)), missing=1)
    assert (
        told(with_runs(sound, "lora", lambda _: {"most_given": MostGiven(answer="true", share=0.94)})) == []
    )


def test_arms_with_the_same_answers() -> None:
    record = study(methods=("lora", "dora"), tasks=("boolq",))
    for seeds, words in ((range(3), "seeds 0, 1, 2"), ([2], "seed 2")):
        (line,) = told(with_same(record, missing=0, seeds=seeds))
        assert f"boolq: DoRA and LoRA gave the same answer to every row with {words}, so" in line


def test_runs_of_one_method_with_the_same_answers() -> None:
    """Other seeds, other rates, and the base: no difference is between them."""
    record = study(methods=("lora", "dora"), tasks=("boolq",))
    lora, dora = ([run.run for run in arm.runs] for arm in record.cells[0].arms)
    for alike, words in (
        ([lora[:2]], "LoRA with seeds 0, 1 gave"),
        ([[lora[0], dora[2]]], "LoRA with seed 0 and DoRA with seed 2 gave"),
        ([[*lora, "runs/base"]], "LoRA with seeds 0, 1, 2 and the base model gave"),
        ([[lora[1], dora[1], "runs/base"]], "LoRA with seed 1, DoRA with seed 1 and the base model gave"),
    ):
        (line,) = told(changed(record, lambda _, alike=alike: {"alike": alike}))
        assert line == f"boolq: {words} the same answer to every row, so nothing tells them apart there."
    pairs = [[one, other] for one, other in zip(lora, dora, strict=True)]
    same = changed(with_same(record, missing=0), lambda _: {"alike": pairs})
    assert told(same) == told(with_same(record, missing=0)), "said once, of the seeds together"


def test_a_pair_within_a_larger_group_of_equal_runs_is_told_once() -> None:
    record = with_same(study(methods=("lora", "dora"), tasks=("boolq",)), missing=0, seeds=[1, 2])
    lora, dora = ([run.run for run in arm.runs] for arm in record.cells[0].arms)
    both = changed(record, lambda _: {"alike": [[*lora[1:], *dora[1:]]]})
    (line,) = told(both)
    assert "boolq: LoRA with seeds 1, 2 and DoRA with seeds 1, 2 gave the same answer" in line


def test_seeds_are_ascending() -> None:
    record = study(methods=("lora", "dora"), tasks=("boolq",))
    trials = [
        Trial(learning_rate=1e-4, seed=seed, accuracy=0.5, rows=20, run=f"runs/{seed}", chosen=True)
        for seed in (1, 2, 0)
    ]
    arms = [record.cells[0].arms[0].model_copy(update={"trials": trials}), record.cells[0].arms[1]]
    (line,) = told(changed(record, lambda _: {"arms": arms, "validation_majority": 0.6}))
    assert "(50.0 %, seeds 0, 1, 2)" in line


def test_an_arm_with_one_answer() -> None:
    record = comparison()
    always = with_runs(record, "dora", lambda _: {"most_given": MostGiven(answer="false", share=0.95)})
    assert told(always) == [
        f"{task}: DoRA gave the answer false to 95.0 % of the rows, so it hardly tells rows apart."
        for task in ("sample-boolq", "sample-winogrande")
    ]
    shares = iter([0.981, 0.5, 1.0])
    seeds = study(methods=("lora", "dora"), tasks=("boolq",))
    mixed = with_runs(seeds, "dora", lambda _: {"most_given": MostGiven(answer="true", share=next(shares))})
    assert told(mixed) == [
        "boolq: DoRA gave the answer true to 98.1 % of the rows or more with seeds 0, 2, "
        "so it hardly tells rows apart."
    ]
    none = with_runs(record, "dora", lambda _: {"most_given": MostGiven(answer=None, share=1.0)})
    assert "gave no readable answer to 100.0 % of the rows" in told(none)[0]
    assert told(changed(always, lambda _: {"majority": 0.95})) == [], "the right answers are as uniform"
    assert told(changed(always, lambda _: {"rows": 19})) == []


def test_runs_that_fell_below_the_others_are_named_and_counted() -> None:
    record = study(methods=("lora", "dora"), tasks=("boolq",))  # 1,200 rows, a majority of 62 %

    def fallen(accuracy: float) -> list[str]:
        def change(run: SeedRun) -> dict[str, Any]:
            return {
                "result": run.result.model_copy(
                    update={"accuracy": accuracy if run.seed == 1 else 0.75 + run.seed / 1000}
                )
            }

        return told(with_runs(record, "lora", change))

    assert fallen(0.745) == []
    far, general = fallen(0.65)
    assert far == (
        "boolq: LoRA with seed 1 ended far below its other runs, at 65.0 % against a median of 75.0 %."
    )
    assert "hold the truth less often" in general
    far, collapsed, _ = fallen(0.62)
    assert collapsed == (
        "boolq: 1 of 3 runs of LoRA collapsed: with seed 1 it ended at or below 62.0 %, which a guess or a "
        "constant answer reaches."
    )


def test_two_seeds_are_warned_of() -> None:
    (line,) = told(study(methods=("lora", "dora"), tasks=("boolq",), seeds=2))
    assert "over two seeds" in line and "five are recommended" in line


def test_weights_that_did_not_move() -> None:
    record = comparison()
    assert told(with_runs(record, "lora", moved(A=0.0, B=0.0))) == [
        "no weight of LoRA moved in training (seed 0)."
    ]
    assert told(with_runs(record, "dora", moved(A=0.1, B=0.1, m=0.0))) == [
        "no element of m of DoRA moved in training (seed 0)."
    ]


def test_every_rendering_shows_the_caution() -> None:
    record = with_same(with_runs(comparison(), "lora", moved(A=0.0, B=0.0)), missing=0)
    file = io.StringIO()
    print_summary(record, Console(file=file, width=300))
    page = page_of(record)
    for text in (file.getvalue(), to_markdown(page), to_html(page)):
        for line in told(record):
            assert line in " ".join(text.split())
