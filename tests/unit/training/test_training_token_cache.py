"""Tokenised rows: as one text after the other gives them, kept by content, and never half of them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from evaluation_support import word_tokenizer
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from doratune.data import encode
from doratune.data import rows as row_texts
from doratune.data.examples import Example, build_examples
from doratune.data.samples import generate
from doratune.data.tasks import get_task
from doratune.errors import InputError
from doratune.training import token_cache, tokenise
from doratune.training.tokenise import encode_examples

ALL = {"cutoff": 10_000, "drop_long_rows": False, "loss_on_prompt": False}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DORATUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_model, pad_token="<unk>")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples were tokenised, call by call."""
    counted: list[int] = []
    original = tokenise._encode

    def counting(examples, *rest):
        counted.append(len(examples))
        return original(examples, *rest)

    monkeypatch.setattr(tokenise, "_encode", counting)
    return counted


def made(rows: int = 30) -> list[Example]:
    return build_examples(
        generate("sample-boolq", "train")[:rows],
        source="sample",
        fmt="instruct",
        task=get_task("sample-boolq"),
    )


def one_by_one(examples: list[Example], tokenizer, front: list[int]) -> list[dict[str, Any]]:
    """The rows by definition: special tokens, prompt, answer, end of sequence, each text by itself."""
    rows = []
    for example in examples:
        prompt_ids = [*front, *tokenizer(example.prompt, add_special_tokens=False)["input_ids"]]
        answer = tokenizer(example.candidates[example.gold], add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        rows.append(
            {
                "input_ids": prompt_ids + answer,
                "labels": [-100] * len(prompt_ids) + answer,
                "example": len(rows),
            }
        )
    return rows


def entry(home: Path) -> Path:
    (folder,) = home.iterdir()
    return folder


@pytest.mark.parametrize("chunk", [1000, 7])
def test_lists_of_texts_have_the_ids_of_one_text_after_the_other(home, tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(encode, "CHUNK", chunk)
    monkeypatch.setattr(tokenise, "CHUNK", 2 * chunk)
    tokenizer.padding_side = "left"  # what a shared tokenizer was last used with changes nothing
    tokenizer(["a b", "c"], padding=True, truncation=True, max_length=4)
    rows = encode_examples(made(), tokenizer, **ALL)
    assert rows.to_list() == one_by_one(made(), tokenizer, [])


@pytest.mark.parametrize(("template", "front"), [("<s> $A </s>", [0]), ("$A </s>", []), ("<s> $A", [0])])
def test_special_tokens_in_lists_of_unlike_lengths(home, template, front):
    tokenizer = word_tokenizer(template)
    examples = [Example(i, "", "w1 " * (i + 1), ("w2", "w3 w4"), ("a", "b"), i % 2) for i in range(9)]
    assert encode_examples(examples, tokenizer, **ALL).to_list() == one_by_one(examples, tokenizer, front)


def test_a_hit_is_memory_mapped_and_has_the_same_rows(home, tokenizer, calls):
    first = encode_examples(made(), tokenizer, **ALL)
    again = encode_examples(made(), tokenizer, **ALL)
    assert calls == [30]
    assert again.to_list() == first.to_list() == one_by_one(made(), tokenizer, [])
    for rows in (first, again):
        assert [Path(file["filename"]).parent for file in rows.cache_files] == [entry(home)]


def test_a_tokenizer_loaded_anew_hits(home, tiny_model, tmp_path, calls):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encode_examples(made(), tokenizer, **ALL)
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    encode_examples(made(), AutoTokenizer.from_pretrained(tmp_path / "elsewhere"), **ALL)
    assert calls == [30]


def changed_row(examples):
    return [*examples[:-1], dataclasses.replace(examples[-1], prompt=examples[-1].prompt + " ")]


def changed_answer(examples):
    return [dataclasses.replace(examples[0], gold=1 - examples[0].gold), *examples[1:]]


def moved_boundary(examples):
    first, answer = examples[0], examples[0].candidates[examples[0].gold]
    moved = dataclasses.replace(first, prompt=first.prompt + answer[0], candidates=(answer[1:],), gold=0)
    return [moved, *examples[1:]]


@pytest.mark.parametrize(
    "change",
    [changed_row, changed_answer, moved_boundary, lambda rows: rows[::-1], lambda rows: rows[:-1]],
)
def test_other_examples_miss(home, tokenizer, calls, change):
    encode_examples(made(), tokenizer, **ALL)
    other = change(made())
    rows = encode_examples(other, tokenizer, **ALL)
    assert calls == [30, len(other)]
    assert rows.to_list() == one_by_one(other, tokenizer, [])


def test_another_prompt_template_misses(home, tokenizer, calls, monkeypatch):
    encode_examples(made(), tokenizer, **ALL)
    monkeypatch.setattr(row_texts, "_PLAIN", row_texts._PLAIN.replace("Below", "Above"))
    rows = encode_examples(made(), tokenizer, **ALL)
    assert calls == [30, 30] and rows.to_list() == one_by_one(made(), tokenizer, [])


def add_token(tokenizer):
    tokenizer.add_tokens([AddedToken("instruction")])


def add_special_token(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["Response"]})


def split_special_tokens(tokenizer):
    tokenizer.split_special_tokens = True


def other_end(tokenizer):
    tokenizer.eos_token = "<s>"


def lower_case(tokenizer):
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(
    "change", [add_token, add_special_token, split_special_tokens, other_end, lower_case]
)
def test_another_tokenizer_misses(home, tokenizer, calls, change):
    examples = [dataclasses.replace(one, prompt=one.prompt + "</s>") for one in made()]
    before = encode_examples(examples, tokenizer, **ALL).to_list()
    change(tokenizer)
    rows = encode_examples(examples, tokenizer, **ALL)
    assert calls == [30, 30]
    assert before != rows.to_list() == one_by_one(examples, tokenizer, [])


def test_loss_on_the_prompt_misses(home, tokenizer, calls):
    encode_examples(made(), tokenizer, **ALL)
    rows = encode_examples(made(), tokenizer, **{**ALL, "loss_on_prompt": True})
    assert calls == [30, 30] and rows["labels"][:] == rows["input_ids"][:]


@pytest.mark.parametrize("version", ["doratune", "format"])
def test_another_version_misses(home, tokenizer, calls, monkeypatch, version):
    encode_examples(made(), tokenizer, **ALL)
    monkeypatch.setattr(token_cache, "__version__" if version == "doratune" else "FORMAT", "another")
    encode_examples(made(), tokenizer, **ALL)
    assert calls == [30, 30]


def own_class(tokenizer):
    class Own(type(tokenizer)):
        pass

    return Own(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")


def own_part(tokenizer):
    class Whole:
        def pre_tokenize(self, text):
            text.split(lambda index, piece: [piece])

    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Whole())
    return tokenizer


@pytest.mark.parametrize("make", [own_class, own_part])
def test_a_tokenizer_with_custom_code_is_not_cached(home, tokenizer, calls, make):
    own = make(tokenizer)
    for _ in range(2):
        assert encode_examples(made(), own, **ALL).to_list() == one_by_one(made(), own, [])
    assert calls == [30, 30] and not home.exists()


def test_long_rows_are_reported_on_a_hit_as_on_a_miss(home, tokenizer, calls, caplog):
    lengths = [len(row["input_ids"]) for row in one_by_one(made(), tokenizer, [])]
    cutoff = sorted(lengths)[20]
    first = next(row for row, length in enumerate(lengths) if length > cutoff)
    count = f"{sum(length > cutoff for length in lengths)} of 30 rows are longer than the cutoff of {cutoff}"
    drop = {**ALL, "cutoff": cutoff, "drop_long_rows": True}
    for _ in range(2):
        caplog.clear()
        rows = encode_examples(made(), tokenizer, **drop)
        expected = [row for row in one_by_one(made(), tokenizer, []) if len(row["input_ids"]) <= cutoff]
        assert rows.to_list() == expected and rows.cache_files
        assert f"{count} tokens and are left out (the longest has {max(lengths)})" in caplog.text
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            encode_examples(made(), tokenizer, **{**drop, "drop_long_rows": False})
        assert f"row {first + 1} of sample-boolq" in caught.value.message and count in caught.value.message
        with pytest.raises(InputError, match="no training row is short enough"):
            encode_examples(made(), tokenizer, **{**drop, "cutoff": 3})
        with pytest.raises(InputError, match="longer than the model's positions") as caught:
            encode_examples(made(), tokenizer, **ALL, context=cutoff)
        assert f"row {first + 1} of sample-boolq" in caught.value.message
        kept = encode_examples(made(), tokenizer, **drop, context=cutoff)
        assert kept.to_list() == rows.to_list()
    assert calls == [30], "rows are kept whole: another cutoff needs no tokenizer"


def truncate(folder):
    path = next(folder.glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder):
    path = next(folder.glob("*.arrow"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose(name):
    return lambda folder: next(folder.glob(name)).unlink()


def garble(name):
    return lambda folder: next(folder.glob(name)).write_bytes(b"\xff{")


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, *map(lose, ("*.arrow", "*.json", "checksum")), garble("checksum")]
    + [garble(name) for name in ("state.json", "dataset_info.json", "*.arrow")],
)
def test_a_damaged_entry_is_replaced(home, tokenizer, calls, damage):
    encode_examples(made(), tokenizer, **ALL)
    damage(entry(home))
    for _ in range(2):
        rows = encode_examples(made(), tokenizer, **ALL)
        assert rows.to_list() == one_by_one(made(), tokenizer, []) and rows.cache_files
    assert calls == [30, 30], "the second time it hits again"


KILLED = """
import os, signal, sys
from datasets import Dataset
from doratune.training import token_cache
rows = Dataset.from_dict({{"input_ids": [[1, 2]] * 5}})
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
{where} = die
token_cache.store_rows("key", rows)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["token_cache._checksum", "token_cache.Path.rename", "Dataset.save_to_disk"]
)
def test_a_killed_process_leaves_no_entry(home, where):
    code = KILLED.format(where=where)
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert token_cache.load_rows("key") is None
    rows = Dataset.from_dict({"input_ids": [[3]]})
    assert token_cache.store_rows("key", rows).to_list() == rows.to_list()
    assert token_cache.load_rows("key").to_list() == rows.to_list()


def test_another_process_was_faster(home, monkeypatch):
    rows = Dataset.from_dict({"input_ids": [[1, 2]]})
    rename = Path.rename

    def beaten(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        token_cache.store_rows("key", rows)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    assert token_cache.store_rows("key", rows).cache_files
    assert [path.name for path in home.iterdir()] == ["key"]


def test_rows_that_another_process_reads_stay(home):
    rows = Dataset.from_dict({"input_ids": [[1, 2]]})
    first = token_cache.store_rows("key", rows)
    (file,) = (Path(one["filename"]) for one in first.cache_files)
    inode = file.stat().st_ino
    token_cache.store_rows("key", rows)
    assert file.stat().st_ino == inode


def test_training_works_without_a_writable_cache(tmp_path, monkeypatch, tokenizer, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DORATUNE_CACHE", str(tmp_path / "file"))
    rows = encode_examples(made(), tokenizer, **ALL)
    assert rows.to_list() == one_by_one(made(), tokenizer, []) and not rows.cache_files
    assert "cannot be cached" in caplog.text


def test_entries_unused_for_a_month_are_deleted(home):
    rows = Dataset.from_dict({"input_ids": [[1]]})
    for name in ("old", "used"):
        token_cache.store_rows(name, rows)
    (home / ".killed-x").mkdir()
    (home / ".running-x").mkdir()
    past = time.time() - token_cache.UNUSED_SECONDS - 60
    for name in ("old", "used", ".killed-x"):
        os.utime(home / name, (past, past))
    assert token_cache.load_rows("used") is not None
    token_cache.store_rows("new", rows)
    assert {path.name for path in home.iterdir()} == {"used", "new", ".running-x"}
