"""Tiny models as GGUF files, with the weights of a model folder, written by names and rules of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

LIKE_LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}
OF_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OF_GPT2 = {
    "transformer.": "",
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "h.": "blk.",
}


def write_gguf(model: Path, path: Path, kind: str = "F32") -> Path:
    """Write the model of a folder to ``path``, its matrices in a type that ``gguf`` can round to."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    config = json.loads((model / "config.json").read_text())
    architecture = {"gemma3_text": "gemma3", "mistral": "llama"}.get(
        config["model_type"], config["model_type"]
    )
    writer = GGUFWriter(path, architecture)
    _describe(writer, config)
    _add_tokenizer(writer, model, config)
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        values = _arranged(name, weight.float().numpy(), architecture, config)
        stored = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        values = quantize(np.ascontiguousarray(values), stored)
        writer.add_tensor(_name(name, architecture), values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str, architecture: str) -> str:
    names = OF_GPT2 if architecture == "gpt2" else LIKE_LLAMA
    if architecture.startswith("gemma"):
        names = {**names, **OF_GEMMA}
    for ours, theirs in names.items():
        name = name.replace(ours, theirs, 1)
    return name


def _arranged(name: str, values: Any, architecture: str, config: dict[str, Any]) -> Any:
    if architecture == "llama" and ("q_proj." in name or "k_proj." in name):
        # llama.cpp has the halves of rotary positions interleaved
        count = config["num_attention_heads" if "q_proj." in name else "num_key_value_heads"]
        return values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture.startswith("gemma") and "norm" in name:
        return values + 1
    if architecture == "gpt2" and ".c_" in name and values.ndim == 2:
        return values.T
    return values


def _describe(writer: Any, config: dict[str, Any]) -> None:
    if config["model_type"] == "gpt2":
        config = {
            **config,
            "num_hidden_layers": config["n_layer"],
            "max_position_embeddings": config["n_positions"],
            "hidden_size": config["n_embd"],
            "intermediate_size": 4 * config["n_embd"],
            "num_attention_heads": config["n_head"],
        }
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _add_tokenizer(writer: Any, model: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<unk>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["eos_token_id"])
