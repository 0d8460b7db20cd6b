"""Flags: each in one group of the help, and a wrong one is answered with the right one."""

from __future__ import annotations

import importlib
import re

import pytest

from doratune.cli.completion import COMMANDS
from doratune.cli.flags import MEANT, refuse_unknown_flags
from doratune.cli.help import FIRST, GROUPS, flag_name, grouped, help_text, is_positional
from doratune.cli.main import VERBS
from doratune.cli.parse import parse
from doratune.cli.train import TrainCommand
from doratune.errors import InputError
from doratune.settings import Settings

MANY = ("train", "eval", "compare")
"""The verbs whose flags are in groups."""


def flags(kind: type[Settings]) -> list[str]:
    return [flag_name(name, one) for name, one in kind.model_fields.items() if not is_positional(one)]


@pytest.mark.parametrize("verb", MANY)
def test_every_flag_is_in_exactly_one_group(verb: str) -> None:
    kind, first = COMMANDS[verb], importlib.import_module(f"doratune.cli.{verb}").FIRST
    assert len(first) == 5
    groups = grouped(kind, first)
    assert next(iter(groups)) == FIRST
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(kind.model_fields)


def test_a_setting_has_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert len(set(names)) == len(names)
    known = {name for verb in MANY for name in COMMANDS[verb].model_fields}
    assert set(names) == known, "a group names a setting that no verb has"


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_help_shows_every_flag_once_with_words(verb: str) -> None:
    kind, module = COMMANDS[verb], importlib.import_module(f"doratune.cli.{verb}")
    text = help_text(kind, verb=verb, about=module.ABOUT, first=getattr(module, "FIRST", ()))
    options = text.partition(module.ABOUT)[2]
    for flag in flags(kind):
        found = re.findall(rf"^  --(?:no-)?{flag}(?: .*)?\n? +\S", options, flags=re.MULTILINE)
        assert len(found) == 1, flag
    assert "Exit codes: 0 done, 1 failure, 2 the input cannot be used, 130" in text and "143" in text


def test_the_completion_knows_the_verbs() -> None:
    assert set(COMMANDS) == set(VERBS) - {"run", "bench"}


@pytest.mark.parametrize(
    ("verb", "given", "meant"),
    [
        ("train", "--lr", "--learning-rate"),
        ("train", "--max_steps", "--steps"),
        ("train", "--rnak", "--rank"),
        ("train", "--num-train-epochs=3", "--epochs"),
        ("train", "--lora_alpha", "--alpha"),
        ("eval", "--limit", "--eval-rows"),
        ("eval", "--batch-size", "--eval-batch-size"),
        ("compare", "--limit", "--eval-rows"),
        ("study", "--ouput", "--output"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(verb: str, given: str, meant: str) -> None:
    with pytest.raises(InputError) as raised:
        refuse_unknown_flags(COMMANDS[verb], [given, "4"], verb=verb)
    assert raised.value.got == given.partition("=")[0]
    assert raised.value.fix == f"did you mean {meant}?"


def test_several_unknown_flags_are_one_message() -> None:
    with pytest.raises(InputError) as raised:
        refuse_unknown_flags(COMMANDS["train"], ["--lr", "1", "--zzz", "--rank", "3"], verb="train")
    assert raised.value.got == "--lr --zzz" and raised.value.fix == "did you mean --learning-rate for --lr?"


def test_known_flags_pass_in_every_spelling() -> None:
    words = [
        "--batch_size",
        "4",
        "--rank=3",
        "--no-rslora",
        "--json",
        "--alpha",
        "-1",
        "--learning-rate",
        "1",
    ]
    refuse_unknown_flags(COMMANDS["train"], words, verb="train")


def test_other_names_lead_to_flags_that_exist() -> None:
    known = {flag for kind in COMMANDS.values() for flag in flags(kind)}
    assert {one for names in MEANT.values() for one in names} <= known


def test_values_that_are_not_allowed_are_named_in_one_message() -> None:
    argv = ["--rank", "0", "--dropout", "nan", "--output", "run"]
    with pytest.raises(InputError) as caught:
        parse(TrainCommand, argv, verb="train", about="")
    assert "rank: should be greater than 0, got 0" in caught.value.message
    assert "dropout: should be" in caught.value.message and "flags of doratune train" in caught.value.message
