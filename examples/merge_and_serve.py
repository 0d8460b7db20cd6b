"""Merge a trained adapter into its base, and answer with transformers alone.

pip install 'doratune[cli]'
python examples/trl_sft.py --model "$(doratune models --path smollm2-135m)" --output runs/trl
python examples/merge_and_serve.py runs/trl --output runs/merged

The first argument is a run directory of `doratune train` or the folder of any PEFT adapter.
"""

import argparse
import subprocess
import sys

from transformers import pipeline

parser = argparse.ArgumentParser()
parser.add_argument("adapter")
parser.add_argument("--output", required=True)
parser.add_argument("--prompts", nargs="+", default=["The capital of France is", "What melts in the sun?"])
parser.add_argument("--tokens", type=int, default=20)
arguments = parser.parse_args()

# Writes a plain model folder, and compares its predictions with those of base and adapter.
merge = [sys.executable, "-m", "doratune", "merge", arguments.adapter, "--output", arguments.output]
subprocess.run(merge, check=True)

# From here on neither doratune nor PEFT is needed. `vllm serve` and others take the same folder.
generate = pipeline("text-generation", model=arguments.output, device_map="auto")
for prompt in arguments.prompts:
    (answer,) = generate(prompt, max_new_tokens=arguments.tokens, do_sample=False)
    print(answer["generated_text"])
