"""The head in float32: held to the same product in float64, of the same hidden states."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from evaluation_support import WORDS, tiny_llama
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from doratune.evaluation.batching import base_model, evaluation_mode
from doratune.evaluation.float32_head import float32_head
from doratune.peft import enable

IDS = torch.arange(2, 26).view(2, 12)
HALVES = [torch.bfloat16, torch.float16]


def in_float64(model: PreTrainedModel) -> torch.Tensor:
    """What the model's last hidden states, rounded as they are, come to by its own head in float64."""
    with torch.no_grad():
        hidden = model.model(IDS).last_hidden_state
        head = model.get_output_embeddings()
        assert head is not None
        return copy.deepcopy(head).double()(hidden.double())


def biased(model: PreTrainedModel) -> PreTrainedModel:
    head = nn.Linear(32, WORDS + 2)
    head.weight = model.lm_head.weight
    model.lm_head = head
    return model


PLAIN: dict[str, Callable[[], PreTrainedModel]] = {
    "untied": tiny_llama,
    "tied": lambda: tiny_llama(tie_word_embeddings=True),
    "bias": lambda: biased(tiny_llama()),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_head(kind: str, dtype: torch.dtype) -> None:
    model = PLAIN[kind]().requires_grad_(False)
    model.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    wanted, before = in_float64(model), model(IDS).logits
    with float32_head(model):
        logits = model(IDS).logits
    assert logits.dtype == torch.float32 and before.dtype == dtype
    assert torch.allclose(logits.double(), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(IDS).logits, before)  # the model is as it was
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("engine", [False, True])
def test_a_head_with_an_adapter(use_dora: bool, tied: bool, engine: bool) -> None:
    torch.manual_seed(3)
    config = LoraConfig(r=4, use_dora=use_dora, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    model = tiny_llama(tie_word_embeddings=tied).to(torch.bfloat16)
    peft_model = get_peft_model(model, config).eval()
    if engine:
        enable(peft_model)
    base = base_model(peft_model)
    wanted = in_float64(base)
    with evaluation_mode(peft_model):
        logits = peft_model(IDS).logits
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES)
def test_later_operations_on_logits_are_in_float32_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=42,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=5.0,
    )
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    model.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    wanted = 5 * torch.tanh(in_float64(model) / 5)
    with float32_head(model):
        logits = model(IDS).logits
    assert torch.allclose(logits.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_replaced_forward_pass_comes_back() -> None:
    """As ``speed_up`` may have left one."""
    model = tiny_llama().to(torch.bfloat16).requires_grad_(False)
    head = model.lm_head
    head.forward = own = lambda hidden: torch.nn.functional.linear(hidden, head.weight)
    with float32_head(model):
        assert model(IDS).logits.dtype == torch.float32
    assert vars(head)["forward"] is own


def test_a_model_in_float32_is_left_alone() -> None:
    model = tiny_llama()
    with float32_head(model):
        assert "forward" not in vars(model.lm_head)


def test_accelerate_still_brings_the_weights() -> None:
    from accelerate import cpu_offload

    model = tiny_llama().to(torch.bfloat16).requires_grad_(False)
    wanted = in_float64(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.lm_head.weight.is_meta
    with float32_head(model):
        logits = model(IDS).logits
    assert torch.allclose(logits.double(), wanted, rtol=1e-5, atol=1e-5)
    assert model.lm_head.weight.is_meta and model(IDS).logits.dtype == torch.bfloat16


class Rounding(nn.Module):
    """A head that computes in bfloat16 whatever it is given, as a quantised one may."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(head.get_parameter("weight").detach())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden.bfloat16() @ self.weight.bfloat16().T).to(hidden.dtype)


def test_a_head_that_still_rounds_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama().to(torch.bfloat16)
    model.lm_head = Rounding(model.lm_head)
    with caplog.at_level(logging.WARNING), float32_head(model), torch.no_grad():
        model(IDS)
        model(IDS)
    assert [record.getMessage() for record in caplog.records] == [
        "the head is not computed in float32, so candidates may tie: its Rounding rounds to fewer digits"
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_head_in_4_bits() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = tiny_llama().to(torch.bfloat16).requires_grad_(False)
    head = bnb.nn.Linear4bit(32, WORDS + 2, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    head.load_state_dict({"weight": model.lm_head.weight.detach().clone()})
    model.lm_head = head.to("cpu")
    with torch.no_grad():
        hidden = model.model(IDS).last_hidden_state
        weight = bnb.functional.dequantize_4bit(head.weight.data, head.weight.quant_state)
        with float32_head(model):
            logits = model(IDS).logits
    wanted = hidden.double() @ weight.double().T
    assert logits.dtype == torch.float32
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("dtype", HALVES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype).requires_grad_(False).cuda()
    with torch.no_grad(), float32_head(model):
        hidden = model.model(IDS.cuda()).last_hidden_state
        logits = model(IDS.cuda()).logits
    wanted = hidden.double() @ model.lm_head.weight.double().T
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.double(), wanted, rtol=1e-5, atol=1e-5)
