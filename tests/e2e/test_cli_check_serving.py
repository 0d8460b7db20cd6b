"""The commands that check-serving suggests for a run work, and what they make loads where it said."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from cli_support import Cli

from doratune.records.servers import ServingCheck


def check(cli: Cli, target: str) -> ServingCheck:
    result = cli("check-serving", target, "--json")
    assert result.code == 0
    return ServingCheck.model_validate(json.loads(result.out))


def test_a_suggested_command_makes_what_a_server_loads(cli: Cli, dora_run: Path, tmp_path: Path) -> None:
    shutil.copytree(dora_run, tmp_path / "my run")
    before = check(cli, "my run")
    assert before.contents.run == "my run" and before.contents.parts == ["dora", "apart"]
    assert check(cli, "my run/adapter").contents == before.contents
    (vllm,) = (one for one in before.servers if one.server == "vllm")
    assert vllm.loads == "no"
    for way in vllm.ways:
        program, *words = shlex.split(way.command)
        assert program == "doratune" and cli(*words).code == 0
        (made,) = (one for one in check(cli, words[-1]).servers if one.server == "vllm")
        assert made.loads == "yes"
        assert shlex.split(made.start[0])[-1].endswith(words[-1])
    assert "my run" in cli("check-serving", "my run").out
