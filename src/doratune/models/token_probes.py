"""Tells tokenizers apart by what they do: by the ids that they give to the texts below.

Tokenizers with equal ids are the same, whether they are read from a folder or a GGUF file, implemented in
Python or Rust, or saved again by another version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from doratune.models.tokenizer import answer_ends
from doratune.records.run import TokenizerRecord

PROMPTS = (
    "",
    "Below is an instruction that describes a task. Write a response.\n\n### Instruction:\nPlease answer the "
    "following question with true or false, question: is the sky blue?\n\n### Response:\n",
    "Question: Which of these is NOT an animal?\nA. horse\nB. granite\nC. newt\nAnswer:",
    "The quick brown foxes aren't jumping over Dr. O'Neill's lazy dogs; they've stopped (mostly) -- why?!",
    "internationalisation UPPERCASE CamelCaseWord snake_case_word https://example.org/a?b=c&d=%20 @me #1",
    "7 42 365 1999 12345 3.14159 1,000,000 -17% 2^10 0x1F 1e-5 12:30 $9.99",
    "a  b   c\td\t\te\n\nf\r\ng \n h  \n",
    "  def add(a, b=0):\n        return {'sum': a + b}[\"sum\"]  # done\n",
    "café cafe\u0301 naïve Straße ÅNGSTRÖM ﬁne ½ ① Ｆｕｌｌ \u00a0\u200b\u200d\ufeff “quoted” ‘text’ – — …",
    "Ελληνικά русский עברית العربية हिन्दी ไทย 中文字符 日本語のテキスト 한국어 𝒳 👩‍👩‍👧 🇪🇺 👍🏽",
    "<s> </s> <unk> <pad> <bos> <eos> [CLS] [SEP] [INST] [/INST] <mask> <0x0A> <think> </think>",
    "<|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <|end_of_text|> <|eot_id|> <|user|>",
)
"""Encoded as prompts are: with the special tokens that the tokenizer puts around a text."""
COMPLETIONS = (
    "true",
    " false",
    "answer1",
    " the correct answer is solution2",
    " 4",
    "\nYes, it's 10.",
    "</s>",
)
"""Encoded as answers are: without them."""
PADDING = re.compile(r"\[PAD\d+\]")
"""Tokens that llama.cpp adds to a GGUF file, as many as the embedding has rows to spare."""


def tokenizer_record(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TokenizerRecord:
    """The record of a tokenizer that distinguishes it from those that give other ids.

    Args:
        model: May name further tokens that end an answer.
        tokenizer: The model's.
    """
    eos: Any = tokenizer.eos_token_id
    return TokenizerRecord(
        vocabulary=_size(tokenizer),
        eos=eos,
        ends=answer_ends(model, tokenizer),
        prompts={text: _ids(tokenizer, text, special=True) for text in PROMPTS},
        completions={text: _ids(tokenizer, text, special=False) for text in COMPLETIONS},
    )


def _size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of tokens, without padding at the end."""
    size = len(tokenizer)
    while size and PADDING.fullmatch(str(tokenizer.convert_ids_to_tokens(size - 1))):
        size -= 1
    return size


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> str:
    try:
        ids: Iterable[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    except Exception as error:  # a word may be missing from the vocabulary; each tokenizer raises its own
        return type(error).__name__
    return " ".join(map(str, ids))
