"""A run by one file, and what it will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_support import SMALL, Cli, losses


def test_a_run_is_repeated_by_its_config(cli: Cli, dora_run: Path) -> None:
    config = dora_run / "config.yaml"
    assert cli("train", "--config", config, "--output", "again").code == 0
    assert losses(Path("again")) == losses(dora_run)
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (dora_run, Path("again")))
    assert {**first, "output": "again"} == second
    assert cli("train", "--config", config, "--steps", 1, "--warmup-steps", 0, "--output", "short").code == 0
    assert len(losses(Path("short"))) == 1, "flags override it"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "no.yaml", "--output", "new"], "there is no such configuration"),
        (["--config", "{run}/config.yaml"], "--output"),
        (["--config", "{run}/config.yaml", "--output", "{run}"], "already holds a run"),
        (["--config", "{run}/config.yaml", "--preset", "demo", "--output", "new"], "not from both"),
        (["--config", "wrong.yaml", "--output", "new"], "did you mean 'rank'"),
    ],
)
def test_a_config_is_refused(cli: Cli, dora_run: Path, flags: list[str], message: str) -> None:
    Path("wrong.yaml").write_text("rnak: 4\n")
    outcome = cli("train", *(flag.format(run=dora_run) for flag in flags))
    assert outcome.code == 2 and message in outcome.err, outcome.err
    assert not Path("new").exists()


def test_a_dry_run_says_what_the_run_takes_and_writes_nothing(cli: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 40, *SMALL]
    shown = cli("train", *flags, "--output", "run", "--dry-run")
    assert shown.code == 0, shown.err
    said = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert said["rows"].startswith("40, of at most")
    assert said["steps"] == "5 of 8 rows, 1 of them warm-up"
    assert said["time"].startswith("about") and said["memory"].startswith("about")
    assert {"parameters", "weights", "process"} <= said.keys()
    told = json.loads(cli("train", *flags, "--output", "run", "--dry-run", "--json").out)
    assert list(Path().iterdir()) == []
    assert cli("train", *flags, "--output", "run").code == 0
    training = json.loads(Path("run/record.json").read_text())["training"]
    assert (told["rows"], told["steps"], told["tokens"]) == (40, training["steps"], training["tokens"])
    record = json.loads(Path("run/record.json").read_text())["parameters"]
    assert (told["size"]["trainable"], told["size"]["total"]) == (record["trainable"], record["total"])


def test_a_dry_run_for_another_machine(cli: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 40, *SMALL, "--output", "run"]

    def told(*more: object) -> dict[str, Any]:
        return json.loads(cli("train", *flags, "--dry-run", "--json", *more).out)

    alone = told("--device", "cuda")
    shared = told("--device", "cuda", "--processes", 4, "--sharding", "fsdp")
    parts, divided = alone["size"]["memory"]["parts"], shared["size"]["memory"]["parts"]
    assert parts["process"] == 0 and alone["seconds"] is None and alone["tokens"] == shared["tokens"]
    for part in ("weights", "adapters", "optimizer"):
        assert divided[part] == parts[part] // 4
    uneven = cli("train", *flags, "--dry-run", "--processes", 3)
    assert uneven.code == 2 and "--batch-size" in uneven.err
    outcome = cli("train", *flags, "--device", "cuda")
    assert outcome.code == 2 and "add --dry-run" in outcome.err
    assert not Path("run").exists()
