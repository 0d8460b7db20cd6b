"""Where a model's parameters are in a GGUF file, and how their values are arranged there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

from doratune.errors import InputError
from doratune.serving.exporting.gguf_file import Floats, GgufFile

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""What a GGUF file calls the architecture of a transformers model type: those whose arrangement is known."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
EXTRA = frozenset({HEAD, "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that a file may have without a parameter: the head of tied embeddings, tables of rotary angles."""
SUFFIXES = (".weight", ".bias")
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""Linear layers that transformers keeps as (d_in, d_out)."""


def _as_it_is(values: Floats) -> Floats:
    return values


@dataclass(frozen=True)
class Layout:
    """The arrangement of one model's parameters in GGUF files.

    Args:
        config: The model's text configuration.
    """

    config: Any

    def __post_init__(self) -> None:
        if self.config.model_type not in ARCHITECTURES:
            raise InputError(
                "doratune does not know how GGUF files arrange this architecture",
                where="--to gguf",
                got=self.config.model_type,
                expected=f"one of {', '.join(ARCHITECTURES)}",
                fix="merge into a folder (doratune merge) and convert that with llama.cpp's "
                "convert_hf_to_gguf.py",
            )

    @property
    def architecture(self) -> str:
        """What GGUF files call it."""
        return ARCHITECTURES[self.config.model_type]

    def tensors(self, file: GgufFile) -> Callable[[str], str | None]:
        """The function from a parameter's name to its tensor's in files of this architecture, if it has one.

        Raises:
            InputError: The file is of another architecture, or has another number of blocks.
        """
        blocks = self.config.num_hidden_layers
        if (file.architecture, file.blocks) != (self.architecture, blocks):
            raise InputError(
                "the GGUF file is not the base model's",
                where=str(file.path),
                got=f"architecture {file.architecture} with {file.blocks} blocks",
                expected=f"{self.architecture} with {blocks}, for a base of type {self.config.model_type}",
                fix="name the base model's GGUF file with --base-gguf",
            )
        kinds: dict[str, MODEL_ARCH] = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
        names = get_tensor_name_map(kinds[self.architecture], blocks)
        return lambda parameter: names.get_name(parameter, SUFFIXES)

    def shape(self, parameter: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a parameter's tensor.

        Args:
            parameter: Its name in the model.
            shape: Its shape there.
        """
        return tuple(reversed(shape)) if self._is_transposed(parameter) else tuple(shape)

    def _is_transposed(self, parameter: str) -> bool:
        return self.architecture == "gpt2" and parameter.endswith(TRANSPOSED)

    def arrange(self, parameter: str) -> Callable[[Floats], Floats]:
        """How a parameter's values are turned into its tensor's.

        Args:
            parameter: Its name in the model.
        """
        module = parameter.rpartition(".")[0]
        if self.architecture == "llama" and module.endswith((".q_proj", ".k_proj")):
            heads = self.config.num_attention_heads
            if module.endswith(".k_proj"):
                heads = self.config.num_key_value_heads or heads
            return lambda values: _interleaved(values, heads)
        if self.architecture in ("gemma2", "gemma3") and parameter.endswith("norm.weight"):
            return lambda values: values + 1  # RMSNorm multiplies by 1 + weight
        if self._is_transposed(parameter):
            return lambda values: values.T
        return _as_it_is


def _interleaved(values: Floats, heads: int) -> Floats:
    """The rows of each head in llama.cpp's order for rotary positions.

    transformers rotates a head's feature i with i + d/2, llama.cpp 2i with 2i + 1.
    """
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
