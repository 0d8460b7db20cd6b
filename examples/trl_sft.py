"""TRL's SFTTrainer with a DoRA adapter on the engine, which takes one additional line.

pip install 'doratune[cli]'
python examples/trl_sft.py --model "$(doratune models --path smollm2-135m)" --output runs/trl

--model also accepts a hub id, such as HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import doratune

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", default=str(Path(__file__).parent / "own_data" / "train.jsonl"))
parser.add_argument("--output", required=True)
parser.add_argument("--steps", type=int, default=30)
arguments = parser.parse_args()

rows = load_dataset("json", data_files=arguments.data, split="train")
assert isinstance(rows, Dataset)
rows = rows.map(
    lambda row: {"prompt": row["question"], "completion": f" {row['answer']}"},
    remove_columns=rows.column_names,
)

tokenizer = AutoTokenizer.from_pretrained(arguments.model)
base = AutoModelForCausalLM.from_pretrained(arguments.model)
config = LoraConfig(r=16, lora_alpha=32, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(base, config)
print(doratune.enable(model))  # the one line; it reports how many layers the engine computes

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=10,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=rows,
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()  # a plain PEFT adapter: PeftModel.from_pretrained(base, output) loads it anywhere
