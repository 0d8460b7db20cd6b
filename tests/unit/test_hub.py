"""The hub is asked only for names that it may have, once, and with a time limit."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import datasets
import datasets.config
import huggingface_hub
import pytest
from hub_server import answering_hub, closed_hub, silent_hub

from doratune import hub
from doratune.data.source import load_split
from doratune.data.tasks import get_task
from doratune.errors import DoratuneError, InputError
from doratune.hub import hub_or_cache, looks_like_path
from doratune.models.load import load_model
from doratune.models.weights import weights_folder
from doratune.records.folders import refuse_missing_folder

BLACK_HOLES = {"silent": silent_hub, "closed": closed_hub}
Point = Callable[[str], None]


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Point:
    """Has the libraries ask another address, with an empty cache and a second's patience."""
    monkeypatch.setattr(hub, "SECONDS", 1.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def at(address: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)

    return at


@pytest.mark.parametrize(
    "name", ["./m", "../m", "/m", "~/m", "a\\b", "C:\\m", "m/", "org/m/", "a/b/c", "here/m"]
)
def test_a_path_is_not_asked_of_the_hub(
    name: str, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    asked: list[str] = []
    with answering_hub("absent", asked) as address:
        point(address)
        task = get_task("boolq")
        assert task.hub is not None
        there = task.model_copy(update={"hub": task.hub.model_copy(update={"path": name})})
        for refuse in (
            lambda: load_model(name),
            lambda: weights_folder(name),
            lambda: refuse_missing_folder(name, "model", where="--model"),
            lambda: load_split(there, "train"),
        ):
            with pytest.raises(InputError):
                refuse()
    assert looks_like_path(name) and asked == []


@pytest.mark.parametrize("name", ["gpt2", "org/m", "org/m.v2"])
def test_an_id_is(name: str, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    with answering_hub("absent", asked) as address:
        point(address)
        with pytest.raises(InputError, match=name):
            load_model(name)
    assert not looks_like_path(name) and asked[0] == f"/api/models/{name}"


def test_a_file_is_refused_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="a file, not a model folder"):
        load_model("model.safetensors")


@pytest.mark.parametrize("kind", BLACK_HOLES)
def test_a_hub_out_of_reach_is_given_up_soon(
    kind: str, point: Point, caplog: pytest.LogCaptureFixture
) -> None:
    task = get_task("boolq")
    with BLACK_HOLES[kind]() as address, caplog.at_level(logging.WARNING):
        point(address)
        started = time.monotonic()
        with pytest.raises(InputError, match="could not be loaded from the hub") as model:
            load_model("org/model")
        with pytest.raises(DoratuneError, match="BoolQ") as rows:
            load_split(task, "train")
        with pytest.raises(InputError, match="the base model is not there") as weights:
            weights_folder("org/model")
        assert time.monotonic() - started < 8  # of which 1 is waited for
    expected = "did not answer within 1 s" if kind == "silent" else "cannot be reached (ConnectError)"
    for caught in (model, rows, weights):
        assert f"the hub at {address} {expected}" in caught.value.message
    assert "etrying" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("absent", "has no org/model"),
        ("private", "needs HF_TOKEN"),
        ("gated", "only to approved users"),
        ("broken", "answered 503"),
    ],
)
def test_what_the_hub_says_is_said(kind: str, said: str, point: Point) -> None:
    asked: list[str] = []
    with answering_hub(kind, asked) as address:
        point(address)
        with pytest.raises(InputError, match=said):
            load_model("org/model")
        with hub_or_cache("org/rows", "dataset") as answer:
            assert answer.failure is not None and said.replace("model", "rows") in answer.failure
    assert asked == ["/api/models/org/model", "/api/datasets/org/rows"]


@pytest.mark.parametrize("kind", [*BLACK_HOLES, "broken"])
def test_a_cached_model_needs_no_hub(
    kind: str,
    point: Point,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit, entry = "0" * 40, tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny_model, entry / "snapshots" / commit)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    asked: list[str] = []
    place: Callable[[], AbstractContextManager[str]] = BLACK_HOLES.get(
        kind, lambda: answering_hub(kind, asked)
    )
    with place() as address, caplog.at_level(logging.WARNING, "doratune"):
        point(address)
        started = time.monotonic()
        assert load_model("org/tiny").source == "hub org/tiny"
        assert time.monotonic() - started < 8
        assert weights_folder("org/tiny").name == commit
    assert "the copy in the cache is used" in caplog.text
    assert not huggingface_hub.is_offline_mode()


def test_offline_mode_asks_nothing(point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with answering_hub("absent", asked) as address:
        point(address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="no such model"):
            load_model("org/model")
        with pytest.raises(DoratuneError):
            load_split(get_task("boolq"), "train")
    assert asked == []


def test_an_address_with_a_password_is_said_without_it(point: Point) -> None:
    with closed_hub() as address:
        point(address.replace("://", "://me:secret@"))
        with pytest.raises(InputError) as caught:
            load_model("org/model")
    assert address in caught.value.message and "secret" not in caught.value.message


def test_datasets_imported_while_nothing_is_asked_asks_again_afterwards() -> None:
    code = (
        "from doratune.hub import offline\n"
        "with offline():\n"
        "    import datasets.config\n"
        "    assert datasets.config.HF_HUB_OFFLINE\n"
        "assert not datasets.config.HF_HUB_OFFLINE\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
