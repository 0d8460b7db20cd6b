"""What an adapter's folder says of itself on another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_runs import record

from doratune.models.names import cached_builtin
from doratune.records.run import RunRecord
from doratune.training.card import card, name_base


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("models/m.gguf", "models/m.gguf"),
        ("org/model", "as PEFT wrote it"),
        ("./folder", "as PEFT wrote it"),
    ],
)
def test_the_base_has_a_name_that_is_resolved_anywhere(tmp_path: Path, model: str, written: str) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": "as PEFT wrote it", "r": 4}))
    name_base(tmp_path, model)
    assert json.loads(path.read_text()) == {"base_model_name_or_path": written, "r": 4}


def test_the_cache_of_another_machine_is_recognised(tmp_path: Path) -> None:
    """Adapters of older versions have it in their configuration."""
    assert cached_builtin("/home/a/.cache/doratune/models/smollm2-135m-b179c9523d0e") == "smollm2-135m"
    here = tmp_path / "models" / "smollm2-135m-b179c9523d0e"
    here.mkdir(parents=True)
    for other in (str(here), "/home/a/models/other", "org/smollm2-135m-b179c9523d0e"):
        assert cached_builtin(other) == other


def test_the_card_says_what_the_record_says() -> None:
    run = RunRecord.model_validate(record("dora", []), strict=False)
    text = card(run)
    for known in (run.model.name, *(one.sha256 for one in run.data), f"{run.parameters.trainable:,}"):
        assert known in text
    assert run.training is not None and f"{run.training.final_loss:.4f}" in text
