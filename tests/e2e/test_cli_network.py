"""Nothing asks for the network that was not told to, and no secret of the environment is written anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from cli_support import SMALL
from gguf_file import write_gguf

pytestmark = pytest.mark.slow

BLOCKED = """
import os, socket

def refused(what):
    with open(os.environ["ASKED"], "a") as log:
        log.write(f"{what}\\n")
    raise OSError("no network in this test")

def only_files(name):
    original = getattr(socket.socket, name)
    def call(self, *arguments):
        if self.family == socket.AF_UNIX:
            return original(self, *arguments)
        refused(f"{name} {arguments[-1]}")
    setattr(socket.socket, name, call)

for name in ("connect", "connect_ex", "sendto"):
    only_files(name)
socket.getaddrinfo = lambda *place, **more: refused(f"getaddrinfo {place}")
"""
MARK = "=== the next commands ===\n"
SECRETS = {
    name: f"secret-of-{name.lower()}"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN")
}
SECRETS["HF_ENDPOINT"] = "http://me:secret-of-the-endpoint@hub.invalid"
SECRETS["HTTPS_PROXY"] = "http://me:secret-of-the-proxy@proxy.invalid"


QUIET = ("HF_HUB_OFFLINE", "CI", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
"""Where these are set, the libraries themselves leave the network alone."""
ROWS = ["--task", "sample-boolq", "--rows", "16", *SMALL]
EVALUATED = ["--task", "sample-boolq", "--eval-rows", "4"]


@dataclass(frozen=True)
class Part:
    """What some commands printed, and what they asked the network for."""

    commands: list[list[str]]
    printed: str
    asked: list[str]


@dataclass(frozen=True)
class Ran:
    """All commands of a process that has secrets, an empty cache and no network."""

    folder: Path
    parts: dict[str, Part]

    @property
    def leaks(self) -> list[str]:
        """Where a secret is found."""
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        texts = {name: part.printed.encode() for name, part in self.parts.items()}
        texts |= {str(file): file.read_bytes() for file in files}
        return [place for place, text in texts.items() if b"secret-of" in text]


@pytest.fixture(scope="module")
def ran(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("blocked")
    commands = {"verbs": verbs(folder, tiny_model)}
    if find_spec("lm_eval"):
        commands["harness"] = [harness(folder, tiny_model)]
    commands["failures"] = [
        ["eval", "org/model", "--task", "sample-boolq", "--output", "out"],
        ["eval", str(tiny_model), "--task", "boolq", "--output", "out"],
    ]
    (folder / "sitecustomize.py").write_text(BLOCKED)
    environment = {
        **{key: value for key, value in os.environ.items() if key not in QUIET},
        **SECRETS,
        "HF_HOME": str(folder / "hf"),
        "DORATUNE_CACHE": str(folder / "cache"),
        "ASKED": str(folder / "asked"),
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    code = (
        "import os; from doratune.cli.main import main\n"
        f"for part, commands in {commands!r}.items():\n"
        "    os.environ['ASKED'] = os.path.abspath(part)\n"
        f"    print({MARK!r}, end='', flush=True)\n"
        "    for command in commands:\n"
        "        print('$', *command, flush=True)\n"
        "        code = main(command)\n"
        "        print('exit code', code, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    before, *printed = done.stdout.split(MARK)
    assert len(printed) == len(commands), done.stdout
    assert before == "" and not (folder / "asked").exists(), "asked for before any command"
    parts = {
        name: Part(some, said, (folder / name).read_text().splitlines() if (folder / name).exists() else [])
        for (name, some), said in zip(commands.items(), printed, strict=True)
    }
    return Ran(folder, parts)


def verbs(folder: Path, model: Path) -> list[list[str]]:
    gguf = str(write_gguf(model, folder / "tiny.gguf"))
    plan = {
        "title": "Tiny",
        "question": "Is the hub left alone?",
        "models": [str(model)],
        "methods": ["dora"],
        "tasks": [{"train": "sample-boolq", "rows": 16, "eval_rows": 4}],
        "ranks": [4],
        "learning_rates": [1e-3],
        "seeds": [0],
        "settings": {"epochs": 1.0, "warmup_steps": 1, "batch_size": 8, "dtype": "float32"},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return [
        ["env"],
        *(
            ["train", "--model", str(model), "--method", method, *ROWS, "--output", method]
            for method in ("lora", "dora", "full")
        ),
        ["train", "--model", gguf, *ROWS, "--output", "of-gguf"],
        *(["eval", run, *EVALUATED] for run in ("lora", "dora", "full", "of-gguf")),
        ["eval", "dora", *EVALUATED, "--protocol", "generate"],
        ["eval", "dora/adapter", *EVALUATED, "--output", "plain"],
        ["report", "lora", "dora", "--output", "report"],
        ["analyze", "lora", "dora", "--output", "analysis"],
        ["study", "plan.yaml", "--output", "study"],
    ]


def harness(folder: Path, model: Path) -> list[str]:
    (folder / "rows.jsonl").write_text('{"question": "is it?", "answer": 0}\n')
    (folder / "ours.yaml").write_text(
        "task: ours\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "doc_to_target: answer\ndoc_to_choice: ['yes', 'no']\nmetric_list: [{metric: acc}]\n"
    )
    return ["eval", str(model), "--harness", "lm-eval", "--task", "ours.yaml", "--output", "by-lm-eval"]


def test_the_verbs_need_no_network(ran: Ran) -> None:
    part = ran.parts["verbs"]
    assert part.printed.count("exit code 0") == len(part.commands), part.printed
    assert part.asked == []


def test_a_task_file_of_lm_eval_with_rows_in_files_needs_no_hub(ran: Ran) -> None:
    pytest.importorskip("lm_eval")
    part = ran.parts["harness"]
    assert "exit code 0" in part.printed, part.printed
    assert part.asked == []


def test_failures_reveal_no_secret(ran: Ran) -> None:
    """These ask for the network, and their messages name the hub's address."""
    part = ran.parts["failures"]
    assert part.printed.count("cannot be reached") == 2 and "http://hub.invalid" in part.printed, part.printed
    assert "Traceback" not in part.printed and part.asked != []


def test_no_secret_is_written_or_printed(ran: Ran) -> None:
    assert ran.leaks == []
