"""``torch.compile`` on a model that is on the engine: one graph, no recompilation, the same losses."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tolerances import TOLERANCES
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

import doratune

STEPS = 4


def model_on_engine(use_dora, layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    adapter = LoraConfig(r=2, use_dora=use_dora, target_modules=targets, init_lora_weights="gaussian")
    model = get_peft_model(LlamaForCausalLM(config), adapter)
    assert doratune.enable(model).taken == {"Linear": 5 * layers}
    return model


def losses(model, call):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    ids = torch.arange(12).view(2, 6)
    found = []
    for _ in range(STEPS):
        loss = call(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # of inductor itself
@pytest.mark.parametrize(
    ("backend", "use_dora", "layers"),
    # inductor compiles C++, a dozen files for each layer
    [("aot_eager", True, 2), ("aot_eager", False, 2), ("inductor", True, 1)],
)
def test_one_graph_and_the_same_losses(backend, use_dora, layers):
    eager = model_on_engine(use_dora, layers)
    expected = losses(eager, eager)
    torch._dynamo.reset()
    counters.clear()
    model = model_on_engine(use_dora, layers)
    actual = losses(model, torch.compile(model, fullgraph=True, backend=backend))
    assert counters["stats"]["unique_graphs"] == 1
    assert actual == pytest.approx(expected, rel=TOLERANCES["loss", torch.float32].relative)
    assert expected[0] != expected[-1]
