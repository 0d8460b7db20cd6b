from __future__ import annotations

import pytest
import torch
from torch.nn.functional import log_softmax

from doratune.training import head
from doratune.training.head import token_scores


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_scores_and_gradient_are_those_of_the_dense_logits(
    chunk: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    n, d, vocabulary = 7, 5, 11
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk * vocabulary)
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(vocabulary, d)
    bias, targets = torch.randn(vocabulary) if with_bias else None, torch.randint(vocabulary, (n,))
    d_log_probs = torch.randn(n)

    log_probs, entropy, is_top1 = token_scores(hidden, targets, weight, bias)
    log_probs.backward(d_log_probs)

    exact = hidden.detach().double().requires_grad_()
    logits = exact @ weight.double().T + (0 if bias is None else bias.double())
    scores = log_softmax(logits, dim=-1)
    picked = scores.gather(1, targets[:, None])[:, 0]
    picked.backward(d_log_probs.double())
    torch.testing.assert_close(log_probs.double(), picked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(scores.exp() * scores).sum(1), rtol=1e-5, atol=1e-5)
    assert is_top1.tolist() == (logits.argmax(1) == targets).tolist()
    assert hidden.grad is not None and exact.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_no_token_gives_no_score_and_still_a_gradient() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    log_probs, _, _ = token_scores(hidden, torch.empty(0, dtype=torch.long), torch.randn(6, 4), None)
    log_probs.sum().backward()
    assert log_probs.shape == (0,)
    assert hidden.grad is not None and hidden.grad.shape == (0, 4)
