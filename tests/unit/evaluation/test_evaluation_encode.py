import pytest
from evaluation_support import BOS, EOS, ids, word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from doratune.data.encode import encode_completions, encode_prompts
from doratune.errors import DoratuneError


def encode_prompt(tokenizer, prompt):
    return encode_prompts(tokenizer, [prompt])[0]


def encode_completion(tokenizer, text):
    return encode_completions(tokenizer, [text])[0]


PROMPT = "Below is an instruction.\n\n### Instruction:\nIs the café open?\n\n### Response:\n"
COMPLETION = "the correct answer is true"


@pytest.mark.parametrize(
    ("template", "front"), [("$A", []), ("<s> $A", [BOS]), ("<s> $A </s>", [BOS]), ("$A </s>", [])]
)
def test_special_tokens_stay_in_front_only(template, front):
    tokenizer = word_tokenizer(template)
    assert encode_prompt(tokenizer, "w3 w4 w3") == [*front, *ids("w3 w4 w3")]
    assert encode_completion(tokenizer, "w5 w6") == ids("w5 w6")


def test_an_end_token_written_in_the_prompt_itself_is_kept():
    assert encode_prompt(word_tokenizer("$A </s>"), "w3 </s>") == [*ids("w3"), EOS]


def test_an_empty_prompt_is_what_the_tokenizer_puts_in_front():
    assert encode_prompt(word_tokenizer("$A"), "") == []


def test_the_boundary_is_where_the_prompt_ends():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([PROMPT + COMPLETION] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    prompt, completion = encode_prompt(tokenizer, PROMPT), encode_completion(tokenizer, COMPLETION)
    assert tokenizer.decode(prompt) == PROMPT
    assert tokenizer.decode(completion) == COMPLETION
    # Neither depends on the other, so training and scoring cut in the same place.
    for other in ("false", " a", "\nx"):
        assert encode_prompt(tokenizer, PROMPT) + encode_completion(tokenizer, other) == [
            *prompt,
            *tokenizer(other, add_special_tokens=False)["input_ids"],
        ]


def test_a_tokenizer_that_rewrites_the_text_is_refused():
    class Rewriting:
        name_or_path = "rewriting"

        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[9, 8, 7] if add_special_tokens else [1, 2] for _ in texts]}

    with pytest.raises(DoratuneError, match="special tokens"):
        encode_prompt(Rewriting(), "a prompt")
