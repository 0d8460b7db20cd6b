"""Two tokenizers over the same weights are two models if their ids differ, and one if they do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_file import write_gguf
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from doratune.models.fingerprint import model_record
from doratune.models.load import load_model
from doratune.models.token_probes import COMPLETIONS, PROMPTS, tokenizer_record
from doratune.records.base_model import compare_base_models
from doratune.records.run import ModelRecord


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def recorded(folder: Path) -> ModelRecord:
    return model_record(load_model(str(folder), dtype="float32"))


def backend(change: Callable[[Tokenizer], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        change(tokenizer)
        tokenizer.save(str(folder / "tokenizer.json"))

    return apply


def serialised(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "tokenizer.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


def swapped(*tokens: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        vocabulary = values["model"]["vocab"]
        first, second = tokens
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    return change


def file(name: str, **changed: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return apply


def before_the_text(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


OTHER: dict[str, tuple[Callable[[Path], None], str]] = {
    "two letters": (serialised(swapped("e", "t")), "'Below is an instruction"),
    "two words": (serialised(swapped("Ġthe", "Ġis")), "'Below is an instruction"),
    "merges in another order": (
        serialised(lambda values: values["model"]["merges"].reverse()),
        "'Below is an instruction",
    ),
    "a token in front": (backend(before_the_text), "'' is nothing in the run and 1 here"),
    "lower case": (
        backend(lambda one: setattr(one, "normalizer", normalizers.Lowercase())),
        "'Below is an instruction",
    ),
    "accents": (backend(lambda one: setattr(one, "normalizer", normalizers.NFC())), "'café cafe"),
    "a space in front": (
        backend(lambda one: setattr(one, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))),
        "'Below is an instruction",
    ),
    "another end of a row": (
        file("tokenizer_config.json", eos_token="<s>"),
        "what ends a row is 2 in the run and 1 here",
    ),
    "another end of an answer": (
        file("generation_config.json", eos_token_id=[2, 7]),
        "what ends an answer is [2] in the run and [2, 7] here",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_tokenizers_with_other_ids_are_shown_by_text(case: str, model: Path) -> None:
    before = recorded(model)
    change, said = OTHER[case]
    change(model)
    after = recorded(model)
    assert (after.fingerprint, after.config) == (before.fingerprint, before.config)
    found = compare_base_models(before, after)
    assert not found.same and "with different tokenizers: " in found.difference
    assert said in found.difference


def test_an_additional_token_is_a_difference(model: Path) -> None:
    from transformers import LlamaForCausalLM

    padded = LlamaForCausalLM.from_pretrained(model)
    padded.resize_token_embeddings(640)
    padded.save_pretrained(model)
    before = recorded(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<answer>"])
    tokenizer.save_pretrained(model)
    found = compare_base_models(before, recorded(model))
    assert "its size is 600 in the run and 601 here" in found.difference


def saved_again(folder: Path) -> None:
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


SAME: dict[str, Callable[[Path], None]] = {
    "saved again": saved_again,
    "another token for padding": file("tokenizer_config.json", pad_token="</s>"),
    "padding on the left": file("tokenizer_config.json", padding_side="left"),
    "a chat template": file("tokenizer_config.json", chat_template="{{ messages }}"),
    "the longest text": file("tokenizer_config.json", model_max_length=8192),
    "an end of answers that the tokenizer has": file("generation_config.json", eos_token_id=2),
    "sampling": file("generation_config.json", do_sample=True, temperature=0.6, top_p=0.9),
}


@pytest.mark.parametrize("case", SAME)
def test_a_tokenizer_with_equal_ids_is_the_same(case: str, model: Path) -> None:
    before = recorded(model)
    SAME[case](model)
    after = recorded(model)
    assert after.tokenizer == before.tokenizer and compare_base_models(before, after).same


def test_a_gguf_file_has_the_tokenizer_of_its_folder(model: Path) -> None:
    of_file = recorded(write_gguf(model, model.parent / "model.gguf"))
    assert of_file.tokenizer == recorded(model).tokenizer
    assert compare_base_models(recorded(model), of_file) == compare_base_models(of_file, recorded(model))
    assert compare_base_models(recorded(model), of_file).same


def test_padding_that_a_gguf_file_adds_is_not_counted(model: Path) -> None:
    loaded = load_model(str(model), dtype="float32")
    before = tokenizer_record(loaded.model, loaded.tokenizer)
    loaded.tokenizer.add_tokens([f"[PAD{id}]" for id in range(600, 640)])
    assert len(loaded.tokenizer) == 640
    assert tokenizer_record(loaded.model, loaded.tokenizer) == before


def test_one_in_python_is_the_one_in_rust(model: Path) -> None:
    """A tokenizer is asked what it does, whatever it is written in."""
    loaded = load_model(str(model), dtype="float32")
    fast = loaded.tokenizer

    class InPython:
        """Only what a slow tokenizer has, too."""

        eos_token_id = fast.eos_token_id

        def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": fast.encode(text, add_special_tokens=add_special_tokens)}

        def __len__(self) -> int:
            return len(fast)

        def convert_ids_to_tokens(self, id: int) -> Any:
            return fast.convert_ids_to_tokens(id)

    slow: Any = InPython()
    assert tokenizer_record(loaded.model, slow) == tokenizer_record(loaded.model, fast)


def test_a_text_without_ids_is_allowed(model: Path) -> None:
    """A vocabulary of words without one for those that are not in it."""
    from tokenizers import models

    words = Tokenizer(models.WordLevel({"true": 0, "</s>": 1}, unk_token="none"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    loaded = load_model(str(model), dtype="float32")
    found = tokenizer_record(loaded.model, tokenizer)
    assert (found.completions["true"], found.completions["answer1"]) == ("0", "Exception")


def test_the_texts_hold_what_tokenizers_differ_in() -> None:
    text = "".join((*PROMPTS, *COMPLETIONS))
    for part in ("  ", "\t", "\r", "\u0301", "\u200d", "①", "中", "👩", "1999", "<s>", "###"):
        assert part in text
    assert max(map(len, PROMPTS)) < 200  # below any model's longest text
