"""Convert a DoRA adapter into a plain LoRA, and load that with PEFT, as a server of LoRA would.

pip install 'doratune[cli]'
python examples/trl_sft.py --model "$(doratune models --path smollm2-135m)" --output runs/trl
python examples/convert_and_load.py runs/trl --rank 64 --output runs/lora

The first argument is a run directory of `doratune train` or the folder of any PEFT adapter.
"""

import argparse
import subprocess
import sys

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("adapter")
parser.add_argument("--rank", default="64")
parser.add_argument("--output", required=True)
parser.add_argument("--model", help="the base model, if it is not where the adapter says")
parser.add_argument("--prompt", default="The capital of France is")
arguments = parser.parse_args()

# Writes the best LoRA of this rank, and says how far its predictions are from the adapter's.
convert = [sys.executable, "-m", "doratune", "convert", arguments.adapter, "--to", "lora"]
subprocess.run([*convert, "--rank", arguments.rank, "--output", arguments.output], check=True)

config = LoraConfig.from_pretrained(arguments.output)
assert isinstance(config, LoraConfig)
print(f"rank {config.r}, DoRA: {config.use_dora}")
base = arguments.model or str(config.base_model_name_or_path)
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), arguments.output)

ids = tokenizer(arguments.prompt, return_tensors="pt").input_ids.to(model.device)
with torch.inference_mode():
    likely = model(input_ids=ids).logits[0, -1].softmax(-1).topk(3)
for probability, token in zip(*likely, strict=True):
    print(f"{probability:.3f} {tokenizer.decode(token)!r}")
