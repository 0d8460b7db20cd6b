"""Training a tiny Llama with PEFT's LoRA or DoRA and with the engine gives the same losses."""

import copy

import pytest
import torch
from layers import randomize_adapters
from peft import LoraConfig, get_peft_model
from tolerances import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import doratune.peft

STEPS = 30

# Late transformers 5 has new names for what PEFT 0.21 and early transformers 5 call gradient checkpointing.
pytestmark = pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing\\w*. is deprecated:FutureWarning")


def tiny_llama(use_dora, **lora):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    settings = LoraConfig(
        r=4, lora_alpha=8, use_dora=use_dora, target_modules=targets, task_type="CAUSAL_LM", **lora
    )
    model = get_peft_model(LlamaForCausalLM(config), settings)
    randomize_adapters(model)
    return model


def train(model):
    torch.manual_seed(0)
    batches = torch.randint(0, 97, (3, 4, 12)).to(model.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize(("dropout", "checkpointing"), [(0.0, None), (0.1, None), (0.0, False), (0.0, True)])
def test_same_losses(use_dora, dropout, checkpointing):
    stock = tiny_llama(use_dora, lora_dropout=dropout)
    engine = copy.deepcopy(stock)
    report = doratune.peft.enable(engine)
    assert (report.taken, report.left) == ({"Linear": 10}, {})
    if checkpointing is not None:
        engine.enable_input_require_grads()
        engine.base_model.model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    expected, losses = train(stock), train(engine)
    assert_close("loss", torch.float32, losses, expected)
    assert losses[-3:].mean() < losses[:3].mean() - 0.5  # it learned, so the comparison means something
