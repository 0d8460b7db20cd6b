"""A tiny random LLaMA over words w0 .. w39, on which every token can be chosen freely."""

from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from doratune.data.examples import Example

WORDS = 40
BOS, EOS = 0, 1


def word_tokenizer(template: str = "<s> $A") -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": BOS, "</s>": EOS, **{f"w{i}": i + 2 for i in range(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tiny_llama(*, kv_heads: int = 2, attention: str = "sdpa", cls: type = LlamaForCausalLM, **settings):
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=WORDS + 2,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        # Large enough for a token's context to matter: an ignored mask then moves the scores by whole nats.
        initializer_range=0.3,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        attn_implementation=attention,
        **settings,
    )
    return cls(config).eval()


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def example(row: int, prompt: str, candidates: tuple[str, ...] = ("w1", "w2")) -> Example:
    labels = tuple(f"answer{i + 1}" for i in range(len(candidates)))
    return Example(row=row, task="tiny", prompt=prompt, candidates=candidates, labels=labels, gold=0)


def ids(text: str) -> list[int]:
    """Token ids by the definition of the words, without the tokenizer."""
    return [int(word[1:]) + 2 for word in text.split()]


@contextmanager
def head_inputs(model: LlamaForCausalLM):
    """What the head is given inside: (shape, whether a matrix product can take it as it lies in memory)."""
    seen: list[tuple[tuple[int, ...], bool]] = []

    def look(_head, inputs):
        seen.append((tuple(inputs[0].shape), inputs[0].is_contiguous()))

    handle = model.lm_head.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
