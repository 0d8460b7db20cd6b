"""QDoRA: a DoRA adapter on a base in 4 bits (NF4), on the engine.

pip install 'doratune[bnb]'
python examples/qdora_4bit.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output runs/qdora
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import doratune

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", type=Path, default=Path(__file__).parent / "own_data" / "train.jsonl")
parser.add_argument("--output", required=True)
parser.add_argument("--steps", type=int, default=30)
arguments = parser.parse_args()

four_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
tokenizer = AutoTokenizer.from_pretrained(arguments.model)
base = AutoModelForCausalLM.from_pretrained(arguments.model, quantization_config=four_bits)
base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
model = get_peft_model(base, LoraConfig(use_dora=True, r=16, lora_alpha=32, target_modules="all-linear"))
print(doratune.enable(model))  # reads the 4-bit weights, to compute their norms

rows = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)
for step in range(arguments.steps):
    row = rows[step % len(rows)]
    ids = tokenizer(f"{row['question']} {row['answer']}", return_tensors="pt").input_ids.to(model.device)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
model.save_pretrained(arguments.output)
