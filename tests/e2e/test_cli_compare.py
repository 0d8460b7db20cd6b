"""``doratune compare`` and ``doratune report`` on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import SMALL, Cli


@pytest.mark.slow
def test_compare_then_resume_then_report(cli: Cli, tiny_model: Path) -> None:
    tasks = [
        "--task",
        "sample-boolq",
        "sample-winogrande",
        "--format",
        "continuation",
        "--rows",
        16,
        "--limit",
        20,
    ]
    flags = ["--model", tiny_model, *tasks, *SMALL, "--output", "both"]
    outcome = cli("compare", *flags)
    assert outcome.code == 0, outcome.err
    comparison = json.loads(Path("both/comparison.json").read_text())
    assert [arm["name"] for arm in comparison["arms"]] == ["base", "lora", "dora"]
    assert [arm["engine"] for arm in comparison["arms"]] == [None, "doratune", "doratune"]
    for result in comparison["tasks"]:
        assert set(result["arms"]) == {"base", "lora", "dora"} and result["rows"] == 20 and result["sample"]
        assert result["difference"]["from"] == "lora" and result["difference"]["to"] == "dora"
    assert "no difference can be told from these rows" in outcome.out
    assert "sample" in outcome.out and Path("both/report.html").stat().st_size > 5000

    refused = cli("compare", *flags)
    assert refused.code == 2 and "already holds a comparison" in refused.err

    assert cli("eval", "both/base", "--task", "sample-hellaswag", "--limit", 10).code == 0
    base = json.loads(Path("both/base/record.json").read_text())
    assert [(one["task"], one["format"]) for one in base["evaluations"]] == [
        ("sample-boolq", "continuation"),
        ("sample-winogrande", "continuation"),
        ("sample-hellaswag", "continuation"),
    ]

    # A comparison that was stopped before its last arm was evaluated goes on there, and comes out the same.
    record = json.loads(Path("both/dora/record.json").read_text())
    record["evaluations"] = record["evaluations"][:1]
    Path("both/dora/record.json").write_text(json.dumps(record))
    shutil.rmtree("both/base")
    assert cli("compare", *flags, "--resume").code == 0
    again = json.loads(Path("both/comparison.json").read_text())
    assert again["tasks"] == comparison["tasks"] and again["arms"][1:] == comparison["arms"][1:]

    reported = cli("report", "both/lora", "both/dora", "--output", "pair", "--json")
    assert reported.code == 0
    pair = json.loads(reported.out)
    differences = [result["difference"] for result in comparison["tasks"]]
    assert [result["difference"] for result in pair["tasks"]] == differences


def test_report_refuses_what_is_no_run(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("report", tmp_path / "nowhere", "--output", "out")
    assert outcome.code == 2 and "no such run directory" in outcome.err
    assert not Path("out").exists()
