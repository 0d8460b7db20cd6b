"""DoRA under PyTorch's FSDP2 (``fully_shard``); launch.sh starts it, one process for each GPU.

``enable`` may be called before or after sharding. ``first_calls`` tells how many layers ran on the engine.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

import doratune
from doratune.peft import first_calls

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "own_data" / "train.jsonl")
parser.add_argument("--output", required=True)
parser.add_argument("--steps", type=int, default=30)
arguments = parser.parse_args()

on_gpu = torch.cuda.is_available()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
distributed.init_process_group("nccl" if on_gpu else "gloo")
rank, processes = distributed.get_rank(), distributed.get_world_size()

torch.manual_seed(0)  # all processes begin with the same adapter
tokenizer = AutoTokenizer.from_pretrained(arguments.model)
base = AutoModelForCausalLM.from_pretrained(arguments.model).to(device)
model = get_peft_model(base, LoraConfig(use_dora=True, r=16, lora_alpha=32, target_modules="all-linear"))
for layer in base.model.layers:
    fully_shard(layer)
fully_shard(model)
doratune.enable(model)

rows = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)
for step in range(arguments.steps):
    row = rows[(step * processes + rank) % len(rows)]
    ids = tokenizer(f"{row['question']} {row['answer']}", return_tensors="pt").input_ids.to(device)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

whole = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
state = get_model_state_dict(model, options=whole)
if rank == 0:
    print(f"{first_calls(model)}; last loss {loss.item():.3f}")
    model.save_pretrained(arguments.output, state_dict=state)
distributed.destroy_process_group()
