"""Fine-tunes a tiny random LLaMA with DoRA by TRL's SFTTrainer, as its documentation does it."""

import argparse
import json

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser(description="Fine-tune a tiny model.")
parser.add_argument("--output_dir", required=True)
arguments = parser.parse_args()

words = [f"word{index}" for index in range(14)]
vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *words])}
word_level = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=word_level, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
)

rows = [
    {"text": " ".join(words[start * step % len(words)] for step in range(1, 13))} for start in range(1, 21)
]

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
)

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=arguments.output_dir,
        max_steps=5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=3e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=4,
        lora_alpha=8,
        use_dora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    ),
)
trainer.train()
trainer.save_model()
print(json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
