"""PEFT's method comparison with intervals. The files have the shape of PEFT's, and made-up numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from rich.console import Console

from doratune.cli.main import main
from doratune.errors import InputError
from doratune.records.peft_results import ROWS, read_peft_results
from doratune.report.markup import to_html, to_markdown
from doratune.report.peft_comparison import PeftView, as_json, page_of_peft, view_of_peft
from doratune.report.terminal import print_peft_comparison

EXPERIMENTS = {  # test rows right
    "lora/tiny-rank32": 600,
    "lora/tiny-rank32-dora": 588,
    "best/tiny-<b>": 680,
    "near/tiny-default": 640,
    "poor/tiny-default": 300,
    "none/tiny-default": 0,
}


def result(name: str, correct: int, **changed: Any) -> dict[str, Any]:
    """One of PEFT's files, with the keys that matter and some that do not."""
    run = {
        "created_at": "2026-01-02T03:04:05+00:00",
        "total_time": 90.0,
        "experiment_name": name,
        "peft_branch": "main",
        "train_config": {"model_id": "tiny/model", "seed": 0, "optimizer_kwargs": {"lr": 2e-4}},
        "peft_config": {"peft_type": "LORA", "r": 32},
        "error_msg": "",
    }
    last = {"step": 10, "test accuracy": correct / ROWS, "train loss": 0.6, "forgetting": 0.0444}
    train = {
        "accelerator_memory_max": 21_300_000_000,
        "train_time": 75.0,
        "file_size": 36_700_000,
        "num_trainable_params": 9_170_000,
        "status": "success",
        "metrics": [{"step": 5, "valid accuracy": 0.5}, last],
    }
    for part in (run, train, last):
        part.update({key: value for key, value in changed.items() if key in part})
    return {
        "run_info": run,
        "train_info": train,
        "meta_info": {"system_info": {"accelerator": changed.get("accelerator", "a GPU")}},
    }


def write(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = write(
        tmp_path / "results",
        **{f"file{place}": result(*one) for place, one in enumerate(EXPERIMENTS.items())},
        failed=result("failed/tiny", 0, status="canceled"),
        earlier=result("lora/tiny-rank32", 5, created_at="2025-01-02T03:04:05+00:00"),
    )
    (folder / ".gitkeep").touch()
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def view(results: Path) -> PeftView:
    return view_of_peft(read_peft_results(results), "doratune report …", "1.2.3")


def printed(view: PeftView, width: int) -> str:
    file = io.StringIO()
    print_peft_comparison(view, Console(file=file, width=width))
    return file.getvalue()


def test_which_differences_can_be_told(view: PeftView) -> None:
    (one,) = as_json(view)["models"]  # type: ignore[misc]
    found = {row["experiment"]: row for row in one["results"]}
    assert list(found) == sorted(EXPERIMENTS, key=lambda name: -EXPERIMENTS[name])
    assert {name: row["outcome"] for name, row in found.items()} == {
        "lora/tiny-rank32": None,
        "lora/tiny-rank32-dora": "undecided",
        "best/tiny-<b>": "higher",
        "near/tiny-default": "undecided",
        "poor/tiny-default": "lower",
        "none/tiny-default": "lower",
    }
    # 80 of 1,319 rows: z = 3.12; Holm over five pairs, two of them with smaller p
    assert found["best/tiny-<b>"]["p_value"] == pytest.approx(0.0018, abs=1e-4)
    assert found["best/tiny-<b>"]["p_adjusted"] == pytest.approx(3 * found["best/tiny-<b>"]["p_value"])
    low, high = found["lora/tiny-rank32"]["interval"]
    assert (high - low) / 2 == pytest.approx(0.027, abs=5e-4), "±2.7 points"


def test_every_rendering_tells_it(view: PeftView) -> None:
    page = page_of_peft(view)
    html = to_html(page)
    for text in (printed(view, 150), to_markdown(page), " ".join(Page(html).text)):
        plain = " ".join(text.replace("\\", "").split())
        for figure in (
            *("45.5 %", "42.8–48.2", "−0.9", "+6.1", "51.6 %", "0.0 %", "0.0–0.3", "+0.044", "2e-4"),
            *("9.17 M", "21.30 GB", "36.7 MB", "1 min 15 s"),
            "3 of the 5 pairs with LoRA differ beyond what unpaired counts allow: 1 higher, 2 lower",
            "cannot be told from 1 of the 5 others, corrected over all 15 pairs",
            "It is conservative, because two adapters of one model tend to be right on the same rows",
            "no interval covers another seed",
            "failed.json is left out: its status is 'canceled'.",
            "earlier.json is left out: file0.json is a later run of lora/tiny-rank32.",
            "notes.txt is left out: not a JSON file.",
            *("Higher than LoRA", "Cannot be told from LoRA", "Lower than LoRA"),
        ):
            assert figure in plain, figure
    assert html.count("<figure") == 3
    assert html.count('<th role="columnheader"') == 3 * 7, "as many columns as fit a page 1,280 pixels wide"
    assert "best/tiny-&lt;b&gt;" in html
    assert "<b>" not in html


def test_the_terminal_fits_80_columns(view: PeftView) -> None:
    text = printed(view, 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "Parameters" not in text
    assert "The report also has parameters, memory, file size and time." in text


def test_models_are_compared_apart_and_without_lora_nothing_is_tested(results: Path) -> None:
    other = result("dora/other", 500, accelerator="another GPU")
    other["run_info"]["train_config"] |= {"model_id": "other/model", "seed": 3}
    other["run_info"]["peft_config"] = None
    other["train_info"] |= {"file_size": 99_999_999}
    write(results, other=other)
    view = view_of_peft(read_peft_results(results), "", "1.2.3")
    alone, compared = view.models
    assert (alone.model, len(alone.rows), len(compared.rows)) == ("other/model", 1, len(EXPERIMENTS))
    assert alone.rows[0].outcome is None
    assert alone.rows[0].result.file_bytes is None, "what PEFT's script writes if it could not save"
    text = printed(view, 150)
    assert "1 result, but none named lora/…-rank32 to compare with" in " ".join(text.split())
    assert "The seeds differ: 0, 3." in text
    assert "different devices: a GPU, another GPU" in " ".join(text.split())


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["train_info"].pop(key)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda values: values.pop("run_info"), "run_info: field required"),
        (without("metrics"), "train_info.metrics: field required"),
        (
            lambda values: values["train_info"]["metrics"][-1].update({"test accuracy": "high"}),
            "metrics, last entry.test accuracy",
        ),
        (
            lambda values: values["train_info"]["metrics"][-1].update({"test accuracy": float("nan")}),
            "equal to",
        ),
        (lambda values: values["run_info"].update({"created_at": "2026-01-02T03:04:05"}), "timezone"),
        (
            lambda values: values["train_info"]["metrics"].append({"test dino_similarity": 0.7}),
            "test dino_similarity",
        ),
        (
            lambda values: values["train_info"]["metrics"][-1].update({"test accuracy": 0.5}),
            "0.5, that is 659.500 rows",
        ),
        (lambda values: values["train_info"].update({"train_time": float("nan")}), "train_time"),
        (lambda values: values["train_info"].update({"train_time": -1.0}), "train_time"),
        (
            lambda values: values["train_info"].update({"num_trainable_params": 10**400}),
            "num_trainable_params",
        ),
        (lambda values: values["train_info"].update({"file_size": -1}), "file_size"),
        (lambda values: values["run_info"].update({"experiment_name": "a\ud800"}), "experiment_name"),
    ],
)
def test_a_file_of_another_shape_is_one_message(
    results: Path, change: Callable[[dict[str, Any]], object], got: str
) -> None:
    values = result("lora/tiny-rank32", 600)
    change(values)
    write(results, odd=values)
    with pytest.raises(InputError) as error:
        read_peft_results(results)
    assert "odd.json" in (error.value.where or "")
    assert got in (str(error.value.got))
    assert error.value.expected


def told(results: Path, **counts: int) -> str:
    folder = write(
        results.parent / "few", **{name: result(f"{name}/t-rank32", n) for name, n in counts.items()}
    )
    text = printed(view_of_peft(read_peft_results(folder), "", "1"), 150)
    for path in folder.iterdir():
        path.unlink()
    return " ".join(text.split())


def test_few_results_are_told_in_whole_sentences(results: Path) -> None:
    alone = told(results, lora=600)
    assert "no result to compare with LoRA's. LoRA is lora/t-rank32" in alone
    same, apart = told(results, lora=600, oft=610), told(results, lora=600, oft=300)
    assert "oft/t-rank32 (46.2 %, interval 43.6–48.9) cannot be told from LoRA, by unpaired counts." in same
    assert "(22.7 %, interval 20.6–25.1) is lower than LoRA, by unpaired counts." in apart
    for text in (alone, same, apart):
        assert "pair" not in text.replace("unpaired", "").replace("paired", "")
        assert " others" not in text.partition("LoRA is")[0] and "The most accurate" not in text
    one = told(results, lora=600, oft=300, boft=610)
    assert "1 of the 2 pairs with LoRA differs beyond" in one
    assert "cannot be told from 1 of the 2 others" in one
    assert "can be told from all 2 others" in told(results, lora=600, oft=300, boft=900)
    assert "can be told from the other result." in told(results, oft=300, boft=610)


def test_a_report_among_the_results_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(results.rglob("*"))
    for output in (results, results / "report"):
        start = ["report", "--from", "peft-method-comparison", str(results)]
        assert main([*start, "--output", str(output)]) == 2
        assert "among the results" in capsys.readouterr().err
    assert set(results.rglob("*")) == before


def test_a_learning_rate_in_text_is_a_number(results: Path) -> None:
    values = result("text/tiny", 600)
    values["run_info"]["train_config"]["optimizer_kwargs"]["lr"] = "1e-4"
    write(results, text=values)
    rates = {one.experiment: one.learning_rate for one in read_peft_results(results).found}
    assert rates["text/tiny"] == 1e-4 and rates["lora/tiny-rank32"] == 2e-4
    values["run_info"]["train_config"]["optimizer_kwargs"]["lr"] = "low"
    write(results, text=values)
    with pytest.raises(InputError, match=r"learning rate(.|\n)*text.json(.|\n)*low"):
        read_peft_results(results)


def test_the_command(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, start = tmp_path / "out", ["report", "--from", "peft-method-comparison"]
    assert main([*start, str(results), "--output", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((out / "method_comparison.json").read_text(encoding="utf-8"))
    assert {path.name for path in out.iterdir()} == {"method_comparison.json", "report.md", "report.html"}

    (tmp_path / "empty" / "results").mkdir(parents=True)
    for arguments, said in (
        ([str(tmp_path / "empty")], "the folder has no result"),
        ([str(tmp_path / "nowhere")], "the folder is missing"),
        ([str(results), str(results)], "from one folder"),
        ([str(results), "--title", "Mine"], "from one folder"),
        ([], "from one folder"),
        ([str(results / "file0.json")], "this is a file, not a folder"),
    ):
        refused = tmp_path / "refused"
        assert main([*start, *arguments, "--output", str(refused)]) == 2
        message = capsys.readouterr().err
        assert said in message
        assert "Traceback" not in message
        assert not refused.exists(), "nothing is written"


def test_of_several_references_none_is_chosen_by_its_result(results: Path) -> None:
    two = {"b": result("lora/b-rank32", 700), "a": result("lora/a-rank32", 600), "oft": result("oft/c", 650)}
    folder = write(results.parent / "two", **two)
    view = view_of_peft(read_peft_results(folder), "", "1")
    (model,) = view.models
    assert model.reference is not None and model.reference.experiment == "lora/a-rank32"
    assert any("lora/a-rank32 and lora/b-rank32 are all LoRA" in note for note in view.notes)


def test_a_models_name_is_only_text(results: Path) -> None:
    named = result("lora/tiny-rank32", 600)
    named["run_info"]["train_config"]["model_id"] = "<img src=x>"
    write(results, odd=named)
    page = to_markdown(page_of_peft(view_of_peft(read_peft_results(results), "", "1")))
    assert page.count("<img src=x") == page.count("\\<img src=x\\>") > 0
