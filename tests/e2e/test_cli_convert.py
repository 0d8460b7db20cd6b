"""``doratune convert`` on a trained run: into LoRA of a rank, of a rank it finds, and exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import Cli
from transformers import AutoModelForCausalLM, AutoTokenizer

from doratune.records.serving import ConvertRecord


def test_a_run_becomes_a_lora_with_what_that_costs(cli: Cli, dora_run: Path) -> None:
    flags = ["--task", "sample-boolq", "--eval-rows", 12]
    outcome = cli("convert", dora_run, "--rank", 4, *flags, "--output", "lora", "--json")
    assert outcome.code == 0, outcome.err
    record = ConvertRecord.model_validate(json.loads(outcome.out))
    assert record.rank == 4 and 0 < record.left_out < 1 and record.method == "dora"
    (task,) = record.tasks
    assert task.rows == 12 and task.format == "instruct" and 0 <= task.p_value <= 1
    assert record == ConvertRecord.model_validate_json(Path("lora/convert.json").read_bytes())
    run = json.loads((dora_run / "record.json").read_text())
    card = Path("lora/README.md").read_text(encoding="utf-8")
    assert all(one["sha256"] in card for one in run["data"]) and "LoRA of rank 4" in card
    AutoTokenizer.from_pretrained("lora")
    outcome = cli("eval", "lora", "--task", "sample-boolq", "--eval-rows", 12, "--output", "answers")
    assert outcome.code == 0, outcome.err
    evaluation = json.loads(Path("answers/record.json").read_text())["evaluations"][0]
    assert evaluation["accuracy"] == task.converted


def test_what_the_terminal_shows(cli: Cli, dora_run: Path) -> None:
    flags = ["--rank", "auto", "--max-kl", 10, "--task", "sample-boolq", "--eval-rows", 4]
    outcome = cli("convert", dora_run, *flags, "--output", "lora")
    assert outcome.code == 0, outcome.err
    for said in ("as LoRA of rank 8", "of ‖ΔW‖ is left out", "q_proj", "Rank tried", "KL", "p = 1.000"):
        assert said in outcome.out


def test_an_exact_conversion_loads_with_transformers_alone(cli: Cli, dora_run: Path) -> None:
    outcome = cli("convert", dora_run, "--exact", "--output", "exact", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["rank"] is None and record["check"]["largest"] < 1e-3
    AutoModelForCausalLM.from_pretrained("exact/base")
    flags = ["--task", "sample-boolq", "--eval-rows", 4, "--output", "answers"]
    outcome = cli("eval", "exact/adapter", *flags)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "the LoRA's rank is missing"),
        (["--rank", 0], "greater than 0"),
        (["--rank", "auto"], "needs the KL divergence"),
        (["--rank", 8, "--exact"], "keeps the adapter's rank"),
        (["--rank", 4, "--task", "no-such-task"], "no-such-task"),
        (["--rank", 4, "--check-data", "missing.txt"], "missing.txt"),
        (["--rank", 4096], "above the size of every adapted layer"),
    ],
)
def test_bad_input_is_one_message(cli: Cli, dora_run: Path, flags: list[object], said: str) -> None:
    outcome = cli("convert", dora_run, *flags, "--output", "out")
    assert outcome.code == 2 and said in outcome.err and "Traceback" not in outcome.err
    assert not Path("out").exists() and not any(Path().glob(".out*"))


def test_no_rank_that_keeps_to_the_kl_is_a_failure(cli: Cli, dora_run: Path) -> None:
    outcome = cli("convert", dora_run, "--rank", "auto", "--max-kl", 1e-30, "--output", "out")
    assert outcome.code == 1 and "no rank keeps to this KL divergence" in outcome.err
    assert not any(Path().glob("*out*"))
