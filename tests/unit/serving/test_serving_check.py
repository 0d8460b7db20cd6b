"""Two models' predictions compared, against the definitions in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from doratune.errors import DoratuneError, InputError
from doratune.models.load import load_model
from doratune.serving.check import TEXTS, check_rows, compare_logits


def test_the_figures_are_their_definitions() -> None:
    torch.manual_seed(0)
    rows = [torch.arange(4)[None], torch.arange(3)[None]]
    one, other = [torch.randn(4, 5), torch.randn(3, 5)], [torch.randn(4, 5), torch.randn(3, 5)]
    found = compare_logits(lambda ids: one[4 - ids.shape[1]], lambda ids: other[4 - ids.shape[1]], rows)
    before, after = (torch.cat(part).double().log_softmax(-1) for part in (one, other))
    kl = (before.exp() * (before - after)).sum(-1)
    assert (found.rows, found.positions) == (2, 7)
    assert found.largest == pytest.approx((before - after).abs().max().item())
    assert found.mean == pytest.approx((before - after).abs().mean().item())
    assert found.top1 == pytest.approx((before.argmax(-1) == after.argmax(-1)).double().mean().item())
    assert found.kl_mean == pytest.approx(kl.mean().item())
    assert found.kl_largest == pytest.approx(kl.max().item())


def test_a_model_compared_with_itself_is_equal_and_nan_is_an_error() -> None:
    def logits(ids: torch.Tensor) -> torch.Tensor:
        return torch.eye(3)

    rows = [torch.zeros(1, 3, dtype=torch.long)]
    found = compare_logits(logits, logits, rows)
    assert (found.largest, found.kl_largest, found.top1) == (0, 0, 1)
    with pytest.raises(DoratuneError, match="not finite"):
        compare_logits(logits, lambda ids: torch.full((3, 3), torch.nan), rows)


def test_rows_come_from_sentences_or_a_file(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_model(str(tiny_model)).tokenizer
    assert [tokenizer.decode(ids[0]) for ids in check_rows(tokenizer)] == list(TEXTS)
    lines, table = tmp_path / "rows.txt", tmp_path / "rows.jsonl"
    lines.write_text("one\n\ntwo\n")
    table.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"instruction": "b", "output": "c"}))
    assert [tokenizer.decode(ids[0]) for ids in check_rows(tokenizer, lines)] == ["one", "two"]
    assert [tokenizer.decode(ids[0]) for ids in check_rows(tokenizer, table)] == ["a", "b\nc"]
    for content, said in (("", "no rows"), ('{"question": "x"}', "no text"), ("{", "not valid JSON")):
        table.write_text(content)
        with pytest.raises(InputError, match=said):
            check_rows(tokenizer, table)
