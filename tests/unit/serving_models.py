"""Tiny models of several families, with the tokenizer of the test suite's tiny LLaMA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from serving_support import save_adapter, unmerged
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from doratune.records.serving import ConvertRecord
from doratune.serving.check import check_rows, compare_logits, logits_of
from doratune.serving.converting.config import ConvertConfig
from doratune.serving.converting.convert import convert

SIZES: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
OF_GPT2: dict[str, Any] = {
    "vocab_size": 600,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any], tuple[str, ...]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, SIZES, ("q_proj", "k_proj", "down_proj")),
    "llama-tied": (
        LlamaConfig,
        LlamaForCausalLM,
        SIZES | {"tie_word_embeddings": True},
        ("q_proj", "up_proj"),
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, SIZES | {"head_dim": 8}, ("q_proj", "v_proj", "gate_proj")),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        SIZES | {"head_dim": 8, "sliding_window": 16},
        ("q_proj", "o_proj", "up_proj"),
    ),
    "gpt2": (GPT2Config, GPT2LMHeadModel, OF_GPT2, ("c_attn", "c_fc")),
    "phi3": (Phi3Config, Phi3ForCausalLM, SIZES, ("qkv_proj", "gate_up_proj")),
    "mixtral": (
        MixtralConfig,
        MixtralForCausalLM,
        SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1},
        ("q_proj", "o_proj"),
    ),
}
"""The configuration, the model, its settings, and the layers that tests adapt."""


def save_model(family: str, folder: Path, tokenizer: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random model of a family, with the tokenizer of another folder."""
    config, kind, sizes, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**sizes)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than initialised, so that every layer matters
            if parameter.ndim > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy2(file, folder / file.name)
    return folder


def converted(adapter: Path, output: Path, **settings: Any) -> ConvertRecord:
    config = ConvertConfig(target=str(adapter), output=output, **settings)
    return convert(config)


def dora(base: Path, folder: Path, *targets: str, **settings: Any) -> Path:
    return save_adapter(base, folder, *targets, **{"use_dora": True} | settings)


def rows(base: Path) -> list[torch.Tensor]:
    return check_rows(AutoTokenizer.from_pretrained(base))


def distance(base: Path, adapter: Path, other_base: Path, other: Path) -> float:
    """The largest difference of a log-probability between two adapters, both on PEFT."""
    before, after = unmerged(base, adapter), unmerged(other_base, other)
    return compare_logits(logits_of(before), logits_of(after), rows(base)).largest
