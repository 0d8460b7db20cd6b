"""transformers' Trainer with a DoRA adapter on the engine.

pip install doratune
python examples/transformers_trainer.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output runs/trainer
"""

import argparse
import json
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import doratune

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", type=Path, default=Path(__file__).parent / "own_data" / "train.jsonl")
parser.add_argument("--output", required=True)
parser.add_argument("--steps", type=int, default=30)
arguments = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(arguments.model)


def encode(line: str) -> dict[str, list[int]]:
    """Token ids of a row; only the answer has labels, so only it has a loss."""
    row = json.loads(line)
    prompt = tokenizer(row["question"])["input_ids"]
    answer = tokenizer(f" {row['answer']}", add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


base = AutoModelForCausalLM.from_pretrained(arguments.model)
model = get_peft_model(base, LoraConfig(use_dora=True, r=16, lora_alpha=32, target_modules="all-linear"))
print(doratune.enable(model))  # the one line

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=1,  # so that no row needs padding
        gradient_accumulation_steps=4,
        learning_rate=1e-3,
        logging_steps=10,
        report_to="none",
    ),
    train_dataset=[encode(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()],
)
trainer.train()
model.save_pretrained(arguments.output)

# Load it again with plain PEFT. The engine also works for inference.
again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(arguments.model), arguments.output)
doratune.enable(again)
