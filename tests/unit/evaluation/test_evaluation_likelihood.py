import copy
import dataclasses

import pytest
import torch
from evaluation_support import BOS, WORDS, example, head_inputs, ids, tiny_llama, word_tokenizer, words
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from doratune.errors import DoratuneError, InputError
from doratune.evaluation.likelihood import score_candidates
from doratune.evaluation.tree import candidate_tree
from doratune.records.answers import Counted, counted

TOKENIZER = word_tokenizer()

# A common beginning (w9 w8 w7), prompts of 1 to 9 further tokens; candidates of one token, of many, sharing a
# beginning, one being the beginning of another, and twice the same.
EXAMPLES = [
    example(0, words(9, 8, 7, 1, 2, 3), (words(4), words(5))),
    example(1, words(9, 8, 7, 6), (words(1, 2, 3), words(1, 2, 4), words(1, 5), words(30))),
    example(2, words(9, 8, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1), (words(2, 2, 2, 2, 2, 2, 2), words(3))),
    example(3, words(9, 8, 7, 5, 4), (words(1, 2), words(1, 2, 3), words(1))),
    example(4, words(9, 8, 7, 5, 4, 3), (words(6, 7), words(6, 7), words(7, 6))),
    example(5, words(9, 8, 7, 20, 21, 22, 23), (words(11, 12), words(13, 14), words(12, 11))),
    example(6, words(9, 8, 7, 33), (words(10),)),
]
NO_PREFIX = [example(i, words(i, 8, *range(3 + i))) for i in range(4)]
SAME_PROMPTS = [example(i, words(1, 2, 3), (words(4, 5, i), words(i))) for i in range(5)]


def naive_scores(model, examples) -> list[list[float]]:
    """One row and one candidate at a time, float64, no padding, no mask, no cache, no tokenizer."""
    model = copy.deepcopy(model).double().eval()
    rows = []
    for row in examples:
        prompt = [BOS, *ids(row.prompt)]
        scores = []
        for candidate in row.candidates:
            sequence = prompt + ids(candidate)
            with torch.no_grad():
                log_p = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
            places = range(len(prompt), len(sequence))
            scores.append(sum(log_p[place - 1, sequence[place]].item() for place in places))
        rows.append(scores)
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equal_to_one_candidate_at_a_time(attention, kv_heads, batch_size):
    model = tiny_llama(attention=attention, kv_heads=kv_heads)
    scores = score_candidates(model, TOKENIZER, EXAMPLES, batch_size=batch_size)
    for row, wanted in zip(scores, naive_scores(model, EXAMPLES), strict=True):
        assert row.raw == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("examples", [NO_PREFIX, SAME_PROMPTS], ids=["no common prefix", "same prompts"])
def test_extremes_of_the_common_prefix(examples):
    tokenizer = word_tokenizer("$A")
    model = tiny_llama()
    scores = score_candidates(model, tokenizer, examples, batch_size=3)
    for row, one in zip(scores, examples, strict=True):
        alone = score_candidates(model, tokenizer, [one], batch_size=1)[0]
        assert row.raw == pytest.approx(alone.raw, rel=1e-5, abs=1e-5)
    with_bos = score_candidates(model, TOKENIZER, examples, batch_size=4)
    for row, wanted in zip(with_bos, naive_scores(model, examples), strict=True):
        assert row.raw == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_the_head_gets_no_slice_with_strides():
    """Its product on a CPU would copy the head's weight for every row."""
    model = tiny_llama()
    with head_inputs(model) as seen:
        score_candidates(model, TOKENIZER, EXAMPLES, batch_size=4)
    assert [shape[0] for shape, _ in seen if shape[0] > 1] == [4, 3]
    assert all(contiguous for shape, contiguous in seen if shape[0] > 1)


def test_only_whole_rows_are_padded():
    """A long prompt beside long candidates of another row makes no row longer than the longest of both."""
    model = tiny_llama()
    rows = [
        example(0, words(1, *[2] * 20), (words(3), words(4))),
        example(
            1, words(5, 6), (words(*[7] * 16), words(8))
        ),  # its tree holds 15 tokens: the last predicts nothing
    ]
    widths = []
    handle = model.register_forward_pre_hook(
        lambda _model, _inputs, named: widths.append(named["input_ids"].shape), with_kwargs=True
    )
    score_candidates(model, word_tokenizer("$A"), rows, batch_size=2)
    handle.remove()
    assert [shape for shape in widths if shape[0] == 2] == [(2, 21)]


def test_identical_candidates_tie_and_share_the_row():
    scores = score_candidates(tiny_llama(), TOKENIZER, [EXAMPLES[4]], batch_size=1)[0].raw
    assert scores[0] == scores[1]
    best = max(scores) == scores[0]
    assert counted(scores, 0) == counted(scores, 1) == (Counted(0.5, 2) if best else Counted(0.0, 1))


def test_candidates_equal_only_in_bfloat16_do_not_tie():
    """The scores are those of the same hidden states, rounded as they are, times the head in float64."""
    model = tiny_llama().to(torch.bfloat16)
    with torch.no_grad():  # logits of 16 to 32, of which bfloat16 knows every eighth
        model.lm_head.weight[2:] = model.lm_head.weight[2:3] + 2**-9 * torch.randn(WORDS, 32)
        prompt = torch.tensor([[BOS, *ids(EXAMPLES[0].prompt)]])
        state = model.model(prompt).last_hidden_state[0, -1].double()
        model.lm_head.weight.mul_(24 / (model.lm_head.weight[2].double() @ state).abs().item())
        rounded = model.lm_head(state.bfloat16())[2:]
    assert len(rounded.unique()) < WORDS / 2
    row = example(0, EXAMPLES[0].prompt, tuple(f"w{number}" for number in range(WORDS)))
    scores = torch.tensor(score_candidates(model, TOKENIZER, [row], batch_size=1)[0].raw)
    logits = model.lm_head.weight.double() @ state
    assert torch.allclose(scores.double(), logits.log_softmax(0)[2:], atol=1e-5)
    assert len(scores.unique()) > 0.9 * len(model.lm_head.weight[2:].unique(dim=0))


@pytest.mark.parametrize("part", ["model.layers.1.mlp.down_proj", "lm_head"])
def test_a_score_that_is_not_finite_names_the_row_and_not_the_mask(part):
    model = tiny_llama()
    with torch.no_grad():
        model.get_submodule(part).weight[3] = torch.nan
    with pytest.raises(DoratuneError, match=r"not finite(.|\n)*row \d of task tiny(.|\n)*nan") as raised:
        score_candidates(model, TOKENIZER, EXAMPLES, batch_size=4)
    assert "mask" not in raised.value.message and raised.value.exit_code == 1


def test_an_ignored_mask_is_reported_with_the_tolerance():
    class Careless(LlamaForCausalLM):
        def forward(self, *args, attention_mask=None, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(DoratuneError, match=r"log-probability -\d+\.\d+(.|\n)*to within .*bfloat16"):
        score_candidates(tiny_llama(cls=Careless).bfloat16(), TOKENIZER, EXAMPLES, batch_size=4)


def test_normalised_by_utf8_bytes():
    scores = score_candidates(tiny_llama(), TOKENIZER, EXAMPLES, batch_size=4)
    for row, one in zip(scores, EXAMPLES, strict=True):
        assert row.normalised == tuple(
            raw / len(text.encode()) for raw, text in zip(row.raw, one.candidates, strict=True)
        )
    # é has two bytes; the unknown word is w0 to the tokenizer.
    accented = score_candidates(tiny_llama(), TOKENIZER, [example(0, "w1", ("é", "w0"))], batch_size=1)[0]
    assert accented.raw[0] == accented.raw[1]
    assert accented.normalised == (accented.raw[0] / 2, accented.raw[1] / 2)


def test_all_continuations_of_one_length_have_probability_one():
    every = tuple(f"w{i}" for i in range(40))
    specials = ("<s>", "</s>")
    scores = score_candidates(tiny_llama(), TOKENIZER, [example(0, "w5 w6", every + specials)], batch_size=1)[
        0
    ]
    assert sum(torch.tensor(scores.raw, dtype=torch.float64).exp()).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16(attention):
    model = tiny_llama(attention=attention)
    wanted = naive_scores(model, EXAMPLES)
    scores = score_candidates(model.to(torch.bfloat16), TOKENIZER, EXAMPLES, batch_size=8)
    for row, row_wanted in zip(scores, wanted, strict=True):
        # bfloat16 keeps 8 bits: about 0.4 % per operation.
        assert row.raw == pytest.approx(row_wanted, rel=0.05, abs=0.1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
def test_adapters_count_as_when_merged():
    torch.manual_seed(1)
    config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_llama(), config)
    plain = naive_scores(tiny_llama(), EXAMPLES)
    scores = score_candidates(model, TOKENIZER, EXAMPLES, batch_size=3)
    merged = copy.deepcopy(model).merge_and_unload()
    for row, wanted, without in zip(scores, naive_scores(merged, EXAMPLES), plain, strict=True):
        assert row.raw == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert row.raw != pytest.approx(without, rel=1e-2, abs=1e-2)


def test_dropout_is_off_inside_and_training_goes_on_afterwards():
    model = tiny_llama(attention_dropout=0.5)
    expected = score_candidates(model, TOKENIZER, EXAMPLES, batch_size=2)
    model.train()
    assert score_candidates(model, TOKENIZER, EXAMPLES, batch_size=2) == expected
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_counts_the_rows():
    seen: list[int] = []
    score_candidates(tiny_llama(), TOKENIZER, EXAMPLES, batch_size=3, progress=seen.append)
    assert seen == [3, 3, 1]
    assert score_candidates(tiny_llama(), TOKENIZER, [], batch_size=3) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (example(4, "w1", ("w2", "")), "candidate answer has no tokens(.|\n)*row 5 of task tiny"),
        (example(4, "w1", ()), "no candidate answers(.|\n)*row 5 of task tiny"),
        (
            example(4, words(*[1] * 254), (words(1, 2, 3),)),
            "positions(.|\n)*row 5 of task tiny(.|\n)*258 tokens(.|\n)*1 of 2 rows",
        ),
    ],
)
def test_bad_rows_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        score_candidates(tiny_llama(), TOKENIZER, [EXAMPLES[0], bad], batch_size=2)
    with pytest.raises(InputError, match="prompt has no tokens"):
        score_candidates(tiny_llama(), word_tokenizer("$A"), [example(0, "")], batch_size=2)
    with pytest.raises(InputError, match="batch size"):
        score_candidates(tiny_llama(), TOKENIZER, EXAMPLES, batch_size=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_does_not_follow_the_mask_is_refused(dtype):
    class Careless(LlamaForCausalLM):
        def forward(self, *args, attention_mask=None, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(DoratuneError, match="does not follow the attention mask"):
        score_candidates(tiny_llama(cls=Careless).to(dtype), TOKENIZER, EXAMPLES, batch_size=4)
    score_candidates(tiny_llama().to(dtype), TOKENIZER, EXAMPLES, batch_size=4)
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="4D mask"):
        score_candidates(model, TOKENIZER, EXAMPLES, batch_size=4)


def test_candidate_tree_by_hand():
    tree = candidate_tree([[5, 6, 7], [5, 6, 8], [5], [9, 6]])
    assert tree.tokens == [5, 6, 9]
    assert tree.parents == [0, 1, 0]
    assert tree.depths == [0, 1, 0]
    assert tree.paths == [[(0, 5), (1, 6), (2, 7)], [(0, 5), (1, 6), (2, 8)], [(0, 5)], [(0, 9), (3, 6)]]


def test_a_label_that_begins_another_in_tokens_is_refused():
    """The longer one would never be chosen, whatever the model."""
    labels = (words(1), words(1, 2))
    labelled = dataclasses.replace(example(4, words(5), (words(9, 1), words(9, 1, 2))), labels=labels)
    with pytest.raises(InputError, match=r"begins another for this tokenizer(.|\n)*row 5 of task tiny"):
        score_candidates(tiny_llama(), TOKENIZER, [labelled], batch_size=1)
    texts = dataclasses.replace(labelled, labels=("answer1", "answer2"))  # the continuation format
    assert score_candidates(tiny_llama(), TOKENIZER, [texts], batch_size=1)
