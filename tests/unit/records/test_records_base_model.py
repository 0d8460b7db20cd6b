"""Whether two runs began from one base model: by its weights, whatever it is called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from doratune.errors import InputError
from doratune.models.fingerprint import model_record
from doratune.models.load import LoadedModel, load_model
from doratune.records.base_model import (
    NAMES_ONLY,
    NORMS_ONLY,
    WEIGHTS_ONLY,
    check_one_base_model,
    compare_base_models,
)
from doratune.records.run import ConfigRecord, ModelRecord, TokenizerRecord

MATRIX = "model.layers.1.mlp.up_proj.weight"


def loaded(name: str | Path, dtype: str = "float32", *, load_in_4bit: bool = False) -> LoadedModel:
    if dtype != "float16":
        return load_model(str(name), dtype=dtype, load_in_4bit=load_in_4bit)
    base = load_model(str(name), dtype="float32")  # float16 is refused on a CPU
    base.model.half()
    return base


def recorded(name: str | Path, dtype: str = "float32", *, load_in_4bit: bool = False) -> ModelRecord:
    return model_record(loaded(name, dtype, load_in_4bit=load_in_4bit))


def change(folder: Path, name: str, row: int = 0) -> None:
    """Add the smallest step of bfloat16 to one weight of a model."""
    weights = load_file(folder / "model.safetensors")
    flat = weights[name].view(-1)
    flat[row] = flat[row].bfloat16().float() * (1 + 2.0**-7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_two_spellings_are_one_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, "copy")
    Path("link").symlink_to(model)
    first = recorded("model")
    for spelling in ("./model", "model/", str(model), "copy", "link", f"../{tmp_path.name}/model"):
        found = compare_base_models(first, recorded(spelling))
        assert found.same and not found.notes, spelling


@pytest.mark.parametrize("name", [MATRIX, "model.embed_tokens.weight", "model.norm.weight"])
def test_changed_weights_at_one_path_are_two_models(model: Path, name: str) -> None:
    before = recorded("model")
    change(model, name, row=-1)
    after = recorded("model")
    found = compare_base_models(before, after)
    assert not found.same and found.difference == "model twice, with different weights"
    with pytest.raises(InputError, match="runs/a, runs/b") as caught:
        check_one_base_model({"runs/a": before, "runs/b": after}, fix="mend it")
    assert caught.value.fix == "mend it"


def test_a_type_keeps_the_fingerprint_and_shows_a_change(model: Path) -> None:
    first = recorded("model")
    types = [recorded("model", dtype) for dtype in ("bfloat16", "float16")]
    assert [compare_base_models(first, one).same for one in types] == [True, True]
    change(model, MATRIX)
    changed = [recorded("model", dtype) for dtype in ("bfloat16", "float16")]
    assert [compare_base_models(first, one).same for one in changed] == [False, False]


def test_4_bits_keep_the_fingerprint_and_show_a_change(model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    first = recorded("model")
    assert compare_base_models(first, recorded("model", load_in_4bit=True)).same
    change(model, MATRIX)
    assert not compare_base_models(first, recorded("model", load_in_4bit=True)).same


def test_offloaded_weights_are_read_from_the_file(model: Path) -> None:
    first, offloaded = recorded("model"), loaded("model")
    offloaded.model.to("meta")  # pyright: ignore[reportArgumentType]
    assert model_record(offloaded).fingerprint == first.fingerprint
    shutil.rmtree(model)
    unknown = model_record(offloaded)
    assert unknown.fingerprint is None and compare_base_models(first, unknown).notes == (NAMES_ONLY,)


def test_weights_that_cannot_be_read_again_are_unseen(model: Path) -> None:
    first, half = recorded("model"), loaded("model", "float16")
    shutil.rmtree(model)
    unseen = model_record(half)
    assert unseen.fingerprint is not None and unseen.fingerprint.endswith(":unseen")
    found = compare_base_models(first, unseen)
    assert found.same and found.notes == (NORMS_ONLY,)


def test_old_records_are_compared_as_far_as_they_go(model: Path) -> None:
    now = recorded("model")
    assert now.fingerprint is not None
    vectors = now.fingerprint.split(":")[1]
    old = now.model_copy(update={"fingerprint": vectors})
    assert compare_base_models(old, now).notes == (NORMS_ONLY,) == compare_base_models(old, old).notes
    other = now.model_copy(update={"fingerprint": "0" * 16})
    assert compare_base_models(other, now).difference == "model twice, with different norm weights"
    larger = old.model_copy(update={"parameters": 10**9})
    assert "1,000,000,000" in compare_base_models(old, larger).difference


def test_without_a_fingerprint_names_are_compared(model: Path) -> None:
    now = recorded("model")
    bare = now.model_copy(update={"fingerprint": None})
    assert compare_base_models(bare, now).notes == (NAMES_ONLY,)
    assert compare_base_models(bare.model_copy(update={"name": str(model)}), now).same
    assert not compare_base_models(bare.model_copy(update={"name": "org/model"}), now).same
    assert check_one_base_model({"a": bare, "b": now, "c": now}, fix="") == [NAMES_ONLY]


def test_a_difference_between_later_runs_is_found() -> None:
    def of(fingerprint: str) -> ModelRecord:
        return ModelRecord(name="m", source="", dtype="float32", parameters=1, fingerprint=fingerprint)

    runs = {"old": of("aa"), "one": of("v2:aa:11"), "two": of("v2:aa:22")}
    with pytest.raises(InputError, match="one, two"):
        check_one_base_model(runs, fix="")


@pytest.mark.parametrize("broken", ["v2", "v2:aa", "", "v9:aa:11"])
def test_a_malformed_fingerprint_is_another_model(broken: str) -> None:
    whole = ModelRecord(name="m", source="", dtype="float32", parameters=1, fingerprint="v2:aa:11")
    assert not compare_base_models(whole, whole.model_copy(update={"fingerprint": broken})).same


def test_a_first_fingerprint_of_the_old_kind_is_still_known(tiny_model: Path) -> None:
    """The first part is what older versions wrote: SHA-256 of names, shapes and bfloat16 bytes of vectors."""
    import hashlib

    weights = load_file(tiny_model / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(name for name, one in weights.items() if one.ndim == 1):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].bfloat16().view(torch.int16).numpy().tobytes())
    fingerprint = recorded(tiny_model).fingerprint
    assert fingerprint is not None and fingerprint.split(":")[1] == digest.hexdigest()[:16]


def test_records_without_configuration_and_tokenizer_are_compared_as_far_as_possible(model: Path) -> None:
    now = recorded("model")
    old = now.model_copy(update={"config": None, "tokenizer": None})
    assert ModelRecord.model_validate(old.model_dump(exclude_none=True)) == old
    for pair in ((old, now), (now, old), (old, old)):
        found = compare_base_models(*pair)
        assert found.same and found.notes == (WEIGHTS_ONLY,)
    assert check_one_base_model({"a": old, "b": now, "c": now}, fix="") == [WEIGHTS_ONLY]
    change(model, MATRIX)
    assert not compare_base_models(old, recorded("model")).same


def described(settings: dict[str, object], transformers: str = "5.0", **tokenizer: object) -> ModelRecord:
    given = {"vocabulary": 9, "eos": 1, "ends": [1], "prompts": {"a": "3"}, "completions": {"a": "3"}}
    return ModelRecord(
        name="m",
        source="",
        dtype="float32",
        parameters=1,
        fingerprint="v2:aa:11",
        config=ConfigRecord(transformers=transformers, settings=settings),
        tokenizer=TokenizerRecord.model_validate({**given, **tokenizer}),
    )


def test_a_setting_of_one_version_only_is_a_note() -> None:
    before, after = described({"eps": 1}), described({"eps": 1, "bias": True}, "5.1")
    for pair in ((before, after), (after, before)):
        found = compare_base_models(*pair)
        assert found.same and "bias" in found.notes[0] and "5.1" in found.notes[0]
    same_version = described({"eps": 1, "bias": True})
    assert "bias is absent in the run and True here" in compare_base_models(before, same_version).difference
    changed = compare_base_models(before, described({"eps": 2, "bias": True}, "5.1"))
    assert "eps is 1 in the run and 2 here" in changed.difference and "bias" not in changed.difference


def test_texts_of_one_version_only_are_not_compared() -> None:
    before = described({}, prompts={"a": "3", "old": "5"})
    assert compare_base_models(before, described({}, prompts={"a": "3", "new": "6"})).same
    assert not compare_base_models(before, described({}, prompts={"a": "4", "new": "6"})).same


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("1 2 3", "1 2 4", "… 2 3 in the run and … 2 4 here"),
        ("3", "1 3", "is 3 in the run and 1 3 here"),
        ("", "1", "is nothing in the run and 1 here"),
        ("1 2", "1 2 3", "… 2 in the run and … 2 3 here"),
        ("9 1 2 3 4 5 6", "8 1 2 3 4 5 6", "is 9 1 2 3 4 … in the run and 8 1 2 3 4 … here"),
    ],
)
def test_ids_are_shown_from_where_they_differ(ours: str, theirs: str, said: str) -> None:
    found = compare_base_models(*(described({}, completions={"a": ids}) for ids in (ours, theirs)))
    assert said in found.difference


def test_all_differences_are_listed_for_each_run() -> None:
    runs = {"runs/a": described({"eps": 1}), "runs/b": described({"eps": 2}, vocabulary=8)}
    with pytest.raises(InputError) as caught:
        check_one_base_model(runs, fix="")
    assert "eps is 1 in runs/a and 2 in runs/b" in caught.value.message
    assert "its size is 9 in runs/a and 8 in runs/b" in caught.value.message


def test_weights_of_a_trained_model_are_left_out() -> None:
    before = described({"eps": 1})
    trained = before.model_copy(update={"fingerprint": "v2:bb:22", "name": "run/model"})
    assert not compare_base_models(before, trained).same
    assert compare_base_models(before, trained, weights=False).same
    changed = described({"eps": 2}).model_copy(update={"fingerprint": "v2:bb:22"})
    assert not compare_base_models(before, changed, weights=False).same
