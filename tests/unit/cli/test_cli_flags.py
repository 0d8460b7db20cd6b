"""Flags: each in one group of the help, and a wrong one is answered with the right one."""

from __future__ import annotations

import re
import shlex

import pytest

from doratune.cli.completion import COMMANDS
from doratune.cli.flags import MEANT, refuse_unknown_flags
from doratune.cli.help import FIRST, GROUPS, flag_name, grouped, help_text, is_positional
from doratune.cli.main import VERBS, main, module_of
from doratune.cli.parse import parse
from doratune.cli.tasks import TasksCommand
from doratune.cli.train import TrainCommand
from doratune.errors import InputError
from doratune.settings import Settings

MANY = ("train", "eval", "compare", "merge", "convert")
"""The verbs whose flags are in groups."""


def flags(kind: type[Settings]) -> list[str]:
    return [flag_name(name, one) for name, one in kind.model_fields.items() if not is_positional(one)]


@pytest.mark.parametrize("verb", MANY)
def test_every_flag_is_in_exactly_one_group(verb: str) -> None:
    kind, first = COMMANDS[verb], module_of(verb).FIRST
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
    kind, module = COMMANDS[verb], module_of(verb)
    text = help_text(kind, verb=verb, about=module.ABOUT, first=getattr(module, "FIRST", ()))
    options = text.partition("Examples:")[2]
    for flag in flags(kind):
        found = re.findall(rf"^  --(?:no-)?{flag}(?: .*)?\n? +\S", options, flags=re.MULTILINE)
        assert len(found) == 1, flag
    assert "Exit codes: 0 done, 1 failure, 2 the input cannot be used, 130" in text and "143" in text
    assert ("--no-NAME" in text) == ("preset" in kind.model_fields)


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_help_fits_a_narrow_terminal_and_its_examples_can_be_copied(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    kind, module = COMMANDS[verb], module_of(verb)
    text = help_text(kind, verb=verb, about=module.ABOUT, first=getattr(module, "FIRST", ()))
    assert max(map(len, text.splitlines())) <= 80
    shown = text.partition("Examples:\n")[2].partition("\n\n")[0]
    written = module.ABOUT.partition("Examples:\n")[2]
    shell = [shlex.split(line) for line in shown.replace("\\\n", "").splitlines()]
    assert [word for words in shell for word in words] == shlex.split(written)
    assert all("doratune" in words for words in shell), "a line that no shell would join to the one before"


def test_the_first_help_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_an_argument_that_may_be_left_out_is_in_brackets() -> None:
    assert help_text(COMMANDS["eval"], verb="eval", about="").startswith("usage: doratune eval TARGET [")
    assert help_text(TasksCommand, verb="tasks", about="").startswith("usage: doratune tasks [NAME] [")


def test_completion_has_every_verb() -> None:
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
def test_an_unknown_flag_suggests_the_nearest(verb: str, given: str, meant: str) -> None:
    with pytest.raises(InputError) as raised:
        refuse_unknown_flags(COMMANDS[verb], [given, "4"], verb=verb)
    assert raised.value.got == given.partition("=")[0]
    assert raised.value.fix == f"did you mean {meant}?"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --task boolq", "a flag is missing\n  where: doratune train\n  expected: --output\n"),
        ("eval smollm2-135m", "no task to evaluate\n  where: --task\n"),
        (
            "train --task boolq --output x --rank 0",
            "\n  where: the flags of doratune train\n  got: rank: should be greater",
        ),
        (
            "train --preset demo --output x --dropout=2",
            "\n  where: the flags of doratune train\n  got: dropout: should be",
        ),
        ("compare --output x --seeds -1", "\n  where: the flags of doratune compare\n  got: seeds"),
    ],
)
def test_what_is_missing_or_out_of_range_is_one_message_in_our_words(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    shown = capsys.readouterr().err
    assert told in shown and "validation error" not in shown and "╭" not in shown


@pytest.mark.parametrize("given", [["--model", ""], ["--model", " "], ["--model="], ["--preset", ""]])
def test_an_empty_value_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *given, "--task", "boolq", "--output", "x"]) == 2
    assert f"got: nothing after {given[0].rstrip('=')}" in capsys.readouterr().err


def test_several_unknown_flags_are_one_message() -> None:
    with pytest.raises(InputError) as raised:
        refuse_unknown_flags(COMMANDS["train"], ["--lr", "1", "--zzz", "--rank", "3"], verb="train")
    assert raised.value.got == "--lr --zzz" and raised.value.fix == "did you mean --learning-rate for --lr?"


@pytest.mark.parametrize(
    ("flag", "method"), [("--rslora", "dora-rslora"), ("--norm-gradient", "dora-attached-norm")]
)
def test_a_switch_that_became_a_method_is_told(flag: str, method: str) -> None:
    with pytest.raises(InputError) as raised:
        refuse_unknown_flags(COMMANDS["train"], [flag], verb="train")
    assert raised.value.got == flag and method in str(raised.value.fix)


def test_known_flags_pass_in_every_spelling() -> None:
    words = [
        "--batch_size",
        "4",
        "--rank=3",
        "--no-drop-long-rows",
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


@pytest.mark.parametrize(
    ("line", "flag", "got", "expected"),
    [
        ("convert run --rank abc --output o", "--rank", "abc", "a valid integer or 'auto'"),
        ("convert run --rank=1.5 --output o", "--rank", "1.5", "a valid integer or 'auto'"),
        ("compare --task t --output o --seeds 1 b", "--seeds", "b", "a valid integer"),
        ("train --output o --epochs x", "--epochs", "x", "a valid number"),
        (
            "train --output o --dtype float8",
            "--dtype",
            "float8",
            "'auto', 'float32', 'bfloat16' or 'float16'",
        ),
    ],
)
def test_a_value_of_another_type_is_one_message(
    line: str, flag: str, got: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = line.split()[0]
    assert main(line.split()) == 2
    assert capsys.readouterr().err.splitlines() == [
        "doratune: a value does not fit its flag",
        f"  where: doratune {verb} {flag}",
        f"  got: {got}",
        f"  expected: {expected}",
    ]


def test_a_value_out_of_range_is_told_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "run", "--rank", "-3", "--output", "o"]) == 2
    assert "rank: should be greater than 0 or 'auto', got -3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "eval smollm2-135m --task sample-boolq --task sample-hellaswag",
        "train --output o --targets q_proj --targets=v_proj",
        "compare --task t --output o --seeds 0 --seeds 1",
    ],
)
def test_a_flag_given_twice_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "a flag is given twice" in capsys.readouterr().err
