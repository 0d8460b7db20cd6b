"""The loss of a text, compared with transformers' own pass over it."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation_support import BOS, EOS, ids, tiny_llama, word_tokenizer, words
from peft import LoraConfig, get_peft_model

from doratune.data.text import BuiltinText, builtin_text
from doratune.errors import DoratuneError
from doratune.evaluation.text_loss import text_loss
from doratune.records.run import ScoredRecord

SCORED = ScoredRecord(weights="base", merged=False, dtype="float32")
TEXT = BuiltinText("made-up", (words(*range(1, 30)), words(5, 4, 3), words(*range(39, 2, -1))))


def plain(model, first: int, text: BuiltinText) -> list[float]:
    """Each paragraph's loss as transformers computes it from labels; the first token is not predicted."""
    found = []
    for paragraph in text.paragraphs:
        whole = torch.tensor([[first, *ids(paragraph)]])
        with torch.no_grad():
            found.append(model(input_ids=whole, labels=whole).loss.item() * (whole.shape[1] - 1))
    return found


def test_every_paragraph_is_a_plain_pass() -> None:
    model, tokenizer = tiny_llama(), word_tokenizer()
    found = text_loss(model, tokenizer, TEXT, SCORED)
    losses = plain(model, BOS, TEXT)
    assert [one.nll for one in found.pieces] == pytest.approx(losses, rel=1e-5)
    assert [one.tokens for one in found.pieces] == [29, 3, 37]
    assert found.nll_per_token == pytest.approx(sum(losses) / 69, rel=1e-5)
    assert found.nll_per_byte == pytest.approx(sum(losses) / sum(map(len, TEXT.paragraphs)), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / 69), rel=1e-4)
    assert found.tokens_per_second > 0


def test_without_bos_a_paragraph_follows_eos_and_the_template_adds_nothing() -> None:
    model, tokenizer = tiny_llama(), word_tokenizer("<s> $A </s>")
    expected = plain(model, EOS, TEXT)
    tokenizer.bos_token = None
    found = text_loss(model, tokenizer, TEXT, SCORED)
    assert [one.nll for one in found.pieces] == pytest.approx(expected, rel=1e-5)


def test_an_adapter_counts_and_stays_apart() -> None:
    model, tokenizer = tiny_llama(), word_tokenizer()
    before = text_loss(model, tokenizer, TEXT, SCORED).nll_per_token
    adapted = get_peft_model(
        model, LoraConfig(use_dora=True, target_modules=["q_proj"], init_lora_weights=False)
    )
    found = text_loss(adapted, tokenizer, TEXT, SCORED)
    assert [one.nll for one in found.pieces] == pytest.approx(plain(adapted.eval(), BOS, TEXT), rel=1e-5)
    assert abs(found.nll_per_token - before) > 1e-3


def test_a_long_paragraph_is_read_in_windows_of_the_context() -> None:
    model, tokenizer = tiny_llama(), word_tokenizer()
    model.config.max_position_embeddings = 16
    found = text_loss(model, tokenizer, TEXT, SCORED)
    total = 0.0
    tokens = [BOS, *ids(TEXT.paragraphs[0])]
    for start in range(0, 29, 16):
        window = torch.tensor([tokens[start : start + 17]])
        with torch.no_grad():
            logits = model(input_ids=window[:, :-1]).logits[0]
        total -= torch.log_softmax(logits, -1)[range(len(logits)), window[0, 1:]].sum().item()
    assert found.pieces[0].nll == pytest.approx(total, rel=1e-5)
    assert [one.tokens for one in found.pieces] == [29, 3, 37]


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model, tokenizer = tiny_llama(), word_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(DoratuneError, match="not finite"):
        text_loss(model, tokenizer, TEXT, SCORED)


def test_the_built_in_text_is_plain_prose_that_stays_the_same() -> None:
    text = builtin_text()
    assert text.sha256.startswith(
        "0cdf239683b71858"
    )  # other text, other losses: older records could not be compared
    assert 600 <= sum(len(one.split()) for one in text.paragraphs) <= 1000
    assert all(one == " ".join(one.split()) and one.isascii() for one in text.paragraphs)
