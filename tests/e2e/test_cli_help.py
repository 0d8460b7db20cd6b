"""Help: quick, and true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import Cli

from doratune.cli.main import HELP, VERBS, module_of
from doratune.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def _examples(text: str) -> list[list[str]]:
    """The doratune commands in a text; an indented line goes on from the one before."""
    joined = re.sub(r"\\?\n {12,}", " ", text)
    launched = r"(?:\$ |\S*/bin/|(?:accelerate launch|torchrun) .*?-m )?"
    found = re.findall(rf"^\s*{launched}(doratune [a-z-]+(?: .*)?)$", joined, flags=re.MULTILINE)
    return [shlex.split(command.split(" > ")[0], comments=True)[1:] for command in found]


def _abouts() -> list[list[str]]:
    texts = [HELP, *(module_of(verb).ABOUT for verb in VERBS)]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        texts += FENCED.findall(page.read_text(encoding="utf-8"))
    return [command for text in texts for command in _examples(text)]


class _ParsedError(Exception):
    """Raised in place of running a command whose flags were good."""


@pytest.mark.parametrize("command", _abouts(), ids=" ".join)
def test_every_example_parses(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import doratune.cli.parse as parsing

    def parse_only(*args: object, **kwargs: object) -> None:
        parsing_parse(*args, **kwargs)
        raise _ParsedError

    if "VERB" in command:
        return
    parsing_parse = parsing.parse
    verb = module_of(command[0])
    if command[0] == "run":  # its one argument is the script; what follows is not parsed here
        with pytest.raises(InputError, match=f"where: {command[1]}"):
            verb.main(command[1:])
        return
    monkeypatch.setattr(verb, "parse", parse_only)
    monkeypatch.setattr(verb, "read_settings", lambda path: {}, raising=False)  # of a run that is not there
    with pytest.raises(_ParsedError):
        verb.main(command[1:])


def test_there_are_examples() -> None:
    verbs = [command[0] for command in _abouts()]
    assert set(VERBS) <= set(verbs)


def test_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys, doratune.cli.main as m; m.main(['--help']); assert 'torch' not in sys.modules"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help_needs_no_torch(verb: str) -> None:
    code = (
        "import sys; from doratune.cli.main import module_of\n"
        f"try: module_of('{verb}').main(['--help'])\n"
        "except SystemExit as end: assert end.code in (0, None)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Examples:" in result.stdout and f"doratune {verb}" in result.stdout


def _help(cli: Cli, verb: str) -> str:
    """A verb's help without its line breaks."""
    return " ".join(cli(verb, "--help").out.split())


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_help_names_presets_and_trackers_that_exist(cli: Cli, verb: str) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    shown = _help(cli, verb)
    presets = {path.stem for path in (ROOT / "src/doratune/training/presets").glob("*.yaml")}
    named = re.search(r"--preset NAME ([\w\-, ]+), or a YAML file", shown)
    assert named and set(named[1].split(", ")) == presets
    trackers = re.search(r"Trackers of transformers' Trainer: ([a-z, ]+)\.", shown)
    assert trackers and set(trackers[1].split(", ")) <= INTEGRATION_TO_CALLBACK.keys()


def test_import_is_fast() -> None:
    code = "import time; t = time.perf_counter(); import doratune; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.3


def test_env_and_version(cli: Cli) -> None:
    from doratune import __version__

    assert cli("--version").out == f"doratune {__version__}\n"
    assert "torch" in cli("env").out
