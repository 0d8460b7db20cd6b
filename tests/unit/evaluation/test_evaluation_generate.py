import copy
from functools import cache

import pytest
import torch
from evaluation_support import BOS, EOS, example, head_inputs, ids, tiny_llama, word_tokenizer, words
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from doratune.engine import norm_cache as norms
from doratune.errors import DoratuneError, InputError
from doratune.evaluation.generate import generate_answers
from doratune.peft import enable

TOKENIZER = word_tokenizer()
PREFIXED = [example(i, words(9, 8, 7, *range(i, i + 1 + (i * 5) % 8))) for i in range(9)]
NO_PREFIX = [example(i, words(*range(i, i + 1 + (i * 3) % 7))) for i in range(8)]
SAME = [example(i, words(4, 5, 6)) for i in range(3)]
EXAMPLES = {"prefix": PREFIXED, "no prefix": NO_PREFIX, "same prompts": SAME}


def one_at_a_time(model, examples, *, num_beams=4, max_new_tokens=12, ends=(EOS,)) -> list[str]:
    """Stock beam search: a row at a time, no padding, no cache handed in; text without the tokenizer."""
    settings = GenerationConfig(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=EOS,
    )
    texts = []
    for row in examples:
        prompt = torch.tensor([[BOS, *ids(row.prompt)]])
        with torch.no_grad():
            output = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
            )
        new = output[0, prompt.shape[1] :].tolist()
        cut = next((place for place, token in enumerate(new) if token in ends), len(new))
        texts.append(words(*(token - 2 for token in new[:cut] if token != BOS)))
    return texts


def spoken_llama(**settings):
    """A float64 model (no near ties) that likes to end: some answers end early, some are cut off."""
    model = tiny_llama(**settings).double()
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 1.5
    return model


@cache
def stock_answers(kind: str) -> list[str]:
    return one_at_a_time(spoken_llama(), EXAMPLES[kind])


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize(("attention", "batch_size"), [("sdpa", 1), ("sdpa", 3), ("sdpa", 8), ("eager", 3)])
def test_equal_to_one_row_at_a_time(kind, batch_size, attention):
    model = spoken_llama(attention=attention)
    answers = generate_answers(model, TOKENIZER, EXAMPLES[kind], batch_size=batch_size, max_new_tokens=12)
    assert answers == stock_answers(kind)


def test_the_rows_above_include_answers_that_end_and_answers_that_are_cut_off():
    lengths = {len(text.split()) for kind in EXAMPLES for text in stock_answers(kind)}
    assert 12 in lengths
    assert len(lengths) > 3


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_beams_and_heads(num_beams, kv_heads):
    model = spoken_llama(kv_heads=kv_heads)
    answers = generate_answers(
        model, TOKENIZER, PREFIXED, batch_size=4, num_beams=num_beams, max_new_tokens=12
    )
    assert answers == one_at_a_time(model, PREFIXED, num_beams=num_beams)


def test_the_models_own_sampling_and_penalties_are_put_aside_and_left_alone():
    model = spoken_llama()
    own = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        repetition_penalty=1.8,
        no_repeat_ngram_size=1,
        eos_token_id=EOS,
        max_length=7,
    )
    before = copy.deepcopy(own.to_dict())
    model.generation_config = own
    assert generate_answers(model, TOKENIZER, PREFIXED, batch_size=4, max_new_tokens=12) == stock_answers(
        "prefix"
    )
    assert model.generation_config is own
    assert own.to_dict() == before


def test_every_end_token_of_the_model_ends_an_answer():
    model = spoken_llama()
    ends = [EOS, 10, 11, 12, 13, 14]
    model.generation_config.eos_token_id = ends[1:]
    answers = generate_answers(model, TOKENIZER, PREFIXED, batch_size=4, max_new_tokens=12)
    assert answers == one_at_a_time(model, PREFIXED, ends=ends)
    assert not {f"w{end - 2}" for end in ends} & set(" ".join(answers).split())


@pytest.mark.parametrize("pad", [None, "w39"])
def test_the_padding_token_does_not_matter(pad):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = pad
    model = spoken_llama()
    answers = generate_answers(model, tokenizer, NO_PREFIX, batch_size=8, max_new_tokens=12)
    assert [text.replace(" w39", "").strip() for text in stock_answers("no prefix")] == [
        text.replace(" w39", "").strip() for text in answers
    ]


def test_the_head_scores_new_tokens_only():
    model = tiny_llama()
    with head_inputs(model) as seen:
        generate_answers(model, TOKENIZER, PREFIXED, batch_size=4, max_new_tokens=3)
    assert seen and all(shape[1] == 1 and contiguous for shape, contiguous in seen)


def test_an_adapters_norms_are_computed_once_however_many_tokens_are_written(monkeypatch, large_layers):
    looks, digest = [], norms._digest
    config = LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(spoken_llama(), config).double()
    stock = one_at_a_time(model, PREFIXED)
    enable(model)
    monkeypatch.setattr(norms, "_digest", lambda tensor: looks.append(tensor.shape) or digest(tensor))
    assert generate_answers(model, TOKENIZER, PREFIXED, batch_size=2, max_new_tokens=12) == stock
    assert len(looks) == 2 * 2 * 3  # layers, targets, and their A, B and W


def test_training_mode_comes_back_and_progress_counts_the_rows():
    model = spoken_llama()
    seen: list[int] = []
    model.train()
    generate_answers(model, TOKENIZER, SAME, batch_size=2, max_new_tokens=2, progress=seen.append)
    assert model.training
    assert seen == [2, 1]
    assert generate_answers(model, TOKENIZER, [], batch_size=2) == []


def test_bad_input_is_refused():
    model = spoken_llama()
    with pytest.raises(InputError, match=r"positions(.|\n)*row 1 of task tiny"):
        generate_answers(model, TOKENIZER, [example(0, words(*[1] * 240))], batch_size=1)
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="end-of-sequence"):
        generate_answers(model, tokenizer, SAME, batch_size=1)


def test_logits_that_are_not_finite_name_the_row():
    """A beam search over NaN ends too, with a text that holds no answer."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    rows = [example(number, words(1, 2, number)) for number in range(3)]
    with pytest.raises(DoratuneError, match=r"not finite(.|\n)*row \d of task tiny"):
        generate_answers(model, word_tokenizer(), rows, batch_size=2)
    with pytest.raises(DoratuneError, match="not finite"):
        generate_answers(model, word_tokenizer(), rows, batch_size=2, num_beams=1)
