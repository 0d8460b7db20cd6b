"""Fine-tunes with DoRA and evaluates in the original study's way, as the baseline for doratune's speed.

    python benchmarks/pipeline/reference.py train --data boolq/train.json --rows 1000 --output runs/reference
    python benchmarks/pipeline/reference.py eval --adapter runs/reference --task boolq \
        --data boolq/test.json --eval-rows 300 --output runs/reference/predictions.jsonl

Written from the study's description (arXiv 2402.09353 and its scripts' settings): stock PEFT with
``use_dora``, transformers' ``Trainer`` with the model's own loss on the logits of every token, rows padded to
the longest of their batch; then the adapter merged into its base, and ``generate`` with four beams for one
row at a time. Only the way of computing is compared, so the rest is doratune's: how a model is found, which
rows are drawn, their prompts and token ids, and how an answer is extracted from a text.

The Trainer draws the order of the rows itself, so it differs from doratune's for the same seed. Unlike in the
study, evaluation passes an attention mask, nothing is held out for validation, and the last adapter is kept.
As in the study, the default is a loss on the prompt too; ``benchmarks/pipeline`` trains both sides on answers
only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from doratune.data.encode import encode_prompts
from doratune.data.examples import build_examples
from doratune.data.source import load_split
from doratune.data.tasks import get_task
from doratune.errors import DoratuneError
from doratune.evaluation.generate import extract_answer
from doratune.models.load import LoadedModel, load_model
from doratune.records.files import write_jsonl_atomic
from doratune.training.config import LLAMA_TARGETS, TrainingSettings
from doratune.training.data import load_training_examples
from doratune.training.tokenise import encode_examples


def train(options: argparse.Namespace) -> None:
    """Write an adapter and the Trainer's state to the output folder."""
    settings = TrainingSettings(data=options.data, rows=options.rows, seed=options.seed)
    examples, _ = load_training_examples(settings)
    base = load_model(options.model, dtype=options.dtype)
    rows = encode_examples(
        examples,
        base.tokenizer,
        cutoff=options.cutoff,
        drop_long_rows=False,
        loss_on_prompt=options.loss_on == "prompt-and-answer",
    ).shuffle(seed=options.seed)
    set_seed(options.seed)
    base.model.config.use_cache = False
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.targets,
        use_dora=True,
    )
    model = get_peft_model(base.model, config)
    trainer = Trainer(
        model=model,
        args=_arguments(options, base),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(base.tokenizer, padding="longest"),
    )
    trainer.train()
    trainer.save_state()
    model.save_pretrained(options.output)


def _arguments(options: argparse.Namespace, base: LoadedModel) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(options.output),
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        bf16=base.dtype == torch.bfloat16,
        fp16=base.dtype == torch.float16,
        use_cpu=base.model.device.type == "cpu",
        logging_steps=1,
        save_steps=200,
        seed=options.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def evaluate(options: argparse.Namespace) -> None:
    """Write one line per row with the text that the model generated and the answer in it."""
    task = get_task(options.task)
    loaded = load_split(task, "test", data=options.data)
    examples = build_examples(
        loaded.rows[: options.eval_rows], source=loaded.source, fmt="instruct", task=task
    )
    base = load_model(options.model, dtype=options.dtype)
    model = PeftModel.from_pretrained(base.model, options.adapter).merge_and_unload()
    model.eval()
    settings = GenerationConfig(
        num_beams=4,
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=base.tokenizer.eos_token_id,
        pad_token_id=base.tokenizer.pad_token_id,
    )
    predictions = []
    for example in examples:
        ids = torch.tensor(encode_prompts(base.tokenizer, [example.prompt]), device=model.device)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
        text = base.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        answer, prediction = example.labels[example.gold], extract_answer(text, task.pattern, example.labels)
        predictions.append({"row": example.row, "answer": answer, "prediction": prediction, "text": text})
    write_jsonl_atomic(options.output, predictions)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    trains = commands.add_parser("train", help="fine-tune with stock PEFT's DoRA")
    trains.set_defaults(run=train)
    trains.add_argument("--output", type=Path, required=True)
    trains.add_argument("--rows", type=int)
    trains.add_argument("--rank", type=int, default=32)
    trains.add_argument("--alpha", type=float, default=64.0)
    trains.add_argument("--dropout", type=float, default=0.05)
    trains.add_argument("--targets", nargs="+", default=[*LLAMA_TARGETS])
    trains.add_argument("--batch-size", type=int, default=16)
    trains.add_argument("--epochs", type=float, default=3.0)
    trains.add_argument("--learning-rate", type=float, default=2e-4)
    trains.add_argument("--warmup-steps", type=int, default=100)
    trains.add_argument("--cutoff", type=int, default=256)
    trains.add_argument("--loss-on", choices=["answer", "prompt-and-answer"], default="prompt-and-answer")
    trains.add_argument("--seed", type=int, default=0)
    evaluates = commands.add_parser("eval", help="merge an adapter and generate, one row at a time")
    evaluates.set_defaults(run=evaluate)
    evaluates.add_argument("--adapter", required=True)
    evaluates.add_argument("--task", required=True)
    evaluates.add_argument("--eval-rows", type=int)
    evaluates.add_argument("--output", type=Path, required=True)
    for command in (trains, evaluates):
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--model", default="smollm2-135m")
        command.add_argument("--dtype", default="auto")
    return parser


def main() -> int:
    """Run a command; bad input ends in exit code 2, as in doratune."""
    options = _parser().parse_args()
    try:
        options.run(options)
    except DoratuneError as error:
        print(f"{Path(__file__).name}: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
