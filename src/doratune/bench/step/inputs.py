"""The base model and the rows of a step: the same for every provider and in every process."""

from __future__ import annotations

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from doratune.data.encode import IGNORED
from doratune.models.load import LoadedModel, load_model, own_device
from doratune.models.precision import resolve_dtype
from doratune.records.bench import StepCase

RANDOM_LLAMA = "random-llama-7b"
"""LLaMA-7B with random weights: speed does not depend on them, and a download of 13 GB is saved."""


def load_base(name: str, dtype: str) -> LoadedModel:
    """A base model on this process's device.

    Args:
        name: ``RANDOM_LLAMA``, or a name that ``load_model`` accepts.
        dtype: As for ``load_model``.

    Raises:
        InputError: No loadable model is found under ``name``.
    """
    if name != RANDOM_LLAMA:
        return load_model(name, dtype=dtype)
    device = own_device()
    torch_dtype = resolve_dtype(dtype, device.type)
    return random_model(LlamaConfig(), device, torch_dtype)  # transformers' defaults are LLaMA-7B's sizes


def random_model(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """A model with random weights from a fixed seed, created on its device in its dtype to save memory."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    config.pad_token_id = vocabulary["<unk>"]
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
    )
    return LoadedModel(model.eval(), tokenizer, RANDOM_LLAMA, "random weights", dtype)


def draw_rows(case: StepCase, vocabulary: int) -> Dataset:
    """Rows of random tokens from a fixed seed.

    They are one batch. Every optimizer step takes all of them, so all providers train on the same rows in
    whatever order a trainer draws them.

    Args:
        case: Number and length of the rows, and which tokens have a loss.
        vocabulary: Number of token ids.

    Returns:
        ``input_ids`` and ``labels`` (-100 where there is no loss), (rows, tokens) each.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (case.rows, case.tokens), generator=generator)
    labels = ids.clone()
    if case.loss_on == "answer":
        labels[:, : -case.answer_tokens] = IGNORED
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
