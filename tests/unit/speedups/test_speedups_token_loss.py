from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, log_softmax

from doratune.speedups.settings import SpeedupSettings
from doratune.speedups.token_loss import token_scores


@pytest.mark.parametrize("trained", ["nothing", "hidden", "head", "all"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (3, 2), (100, 3), (100, 100)])
def test_scores_and_gradients_are_those_of_the_dense_logits(
    chunk: int, block: int, with_bias: bool, trained: str
) -> None:
    torch.manual_seed(0)
    n, d, vocabulary = 7, 5, 11
    settings = SpeedupSettings(chunk_elements=chunk * vocabulary, block_elements=block * vocabulary)
    hidden, weight = torch.randn(n, d), torch.randn(vocabulary, d)
    bias, targets = torch.randn(vocabulary) if with_bias else None, torch.randint(vocabulary, (n,))
    d_log_probs = torch.randn(n)
    hidden.requires_grad_(trained in ("hidden", "all"))
    for part in (weight, *([] if bias is None else [bias])):
        part.requires_grad_(trained in ("head", "all"))

    log_probs, entropy, is_top1 = token_scores(hidden, targets, weight, bias, settings)
    if trained != "nothing":
        log_probs.backward(d_log_probs)

    exact = [
        None if one is None else one.detach().double().requires_grad_() for one in (hidden, weight, bias)
    ]
    logits = linear(*exact)
    scores = log_softmax(logits, dim=-1)
    picked = scores.gather(1, targets[:, None])[:, 0]
    picked.backward(d_log_probs.double())
    torch.testing.assert_close(log_probs.double(), picked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(scores.exp() * scores).sum(1), rtol=1e-5, atol=1e-5)
    assert is_top1.tolist() == (logits.argmax(1) == targets).tolist()
    for got, wanted in zip((hidden, weight, bias), exact, strict=True):
        if got is not None and got.requires_grad:
            torch.testing.assert_close(got.grad, wanted.grad.float(), rtol=1e-4, atol=1e-5)


def test_no_token_gives_no_score_and_still_a_gradient() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    log_probs, _, _ = token_scores(
        hidden, torch.empty(0, dtype=torch.long), torch.randn(6, 4), None, SpeedupSettings()
    )
    log_probs.sum().backward()
    assert log_probs.shape == (0,)
    assert hidden.grad is not None and hidden.grad.shape == (0, 4)


def test_a_head_shared_with_its_input_gathers_both_gradients() -> None:
    torch.manual_seed(0)
    shared, ids = torch.randn(9, 4, dtype=torch.float32, requires_grad=True), torch.tensor([1, 4, 4, 0])
    log_probs, _, _ = token_scores(shared[ids], ids.flip(0), shared, None, SpeedupSettings())
    log_probs.sum().backward()
    exact = shared.detach().double().requires_grad_()
    log_softmax(exact[ids] @ exact.T, dim=-1).gather(1, ids.flip(0)[:, None]).sum().backward()
    assert shared.grad is not None and exact.grad is not None
    torch.testing.assert_close(shared.grad, exact.grad.float(), rtol=1e-4, atol=1e-5)


def test_autocast_gives_float32_gradients_close_to_the_exact_ones() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 32, requires_grad=True), torch.randn(40, 32, requires_grad=True)
    targets = torch.randint(40, (6,))
    token_scores(hidden, targets, weight, None, SpeedupSettings())[0].sum().backward()
    exact = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, _, _ = token_scores(hidden, targets, weight, None, SpeedupSettings())
    log_probs.sum().backward()
    assert log_probs.dtype == torch.float32
    for got, wanted in zip((hidden.grad, weight.grad), exact, strict=True):
        assert got is not None and wanted is not None and got.dtype == torch.float32
        error = (got - wanted).norm() / wanted.norm()
        assert 1e-5 < error < 0.03, "computed in bfloat16, which has 8 bits"
