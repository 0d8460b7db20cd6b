"""Fine-tunes a tiny random LLaMA with DoRA by transformers' Trainer and get_peft_model."""

import argparse
import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Counting(torch.utils.data.Dataset):
    """Rows of token ids that count upwards in steps."""

    def __len__(self):
        return 40

    def __getitem__(self, row):
        ids = (torch.arange(16) * (row % 5 + 1) + row) % 32
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    config = LoraConfig(r=4, lora_dropout=0.1, use_dora=True, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=arguments.output_dir,
            max_steps=5,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Counting(),
    )
    trainer.train()
    model.save_pretrained(arguments.output_dir)
    print(json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))


if __name__ == "__main__":
    main()
