"""Nothing asks for the network that was not told to, and no secret of the environment is written anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
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
SECRETS = {
    name: f"secret-of-{name.lower()}"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN")
}
SECRETS["HF_ENDPOINT"] = "http://me:secret-of-the-endpoint@hub.invalid"
SECRETS["HTTPS_PROXY"] = "http://me:secret-of-the-proxy@proxy.invalid"


class Blocked:
    """Runs verbs in one process of their own that has secrets, an empty cache and no network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "asked"
        (folder / "sitecustomize.py").write_text(BLOCKED)
        # Where these are set, the libraries themselves leave the network alone.
        quiet = ("HF_HUB_OFFLINE", "CI", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
        kept = {key: value for key, value in os.environ.items() if key not in quiet}
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._env = {
            **kept,
            **SECRETS,
            "HF_HOME": str(folder / "hf"),
            "DORATUNE_CACHE": str(folder / "cache"),
            "ASKED": str(self._log),
            "PYTHONPATH": path,
        }

    def __call__(self, *commands: list[str]) -> str:
        code = (
            "import sys; from doratune.cli.main import main\n"
            f"for command in {commands!r}:\n"
            "    print('$', *command, flush=True)\n"
            "    code = main(command)\n"
            "    print('exit code', code, flush=True)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.folder, env=self._env, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    @property
    def asked(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def leaks(self, printed: str) -> list[str]:
        """Where a secret is found."""
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        texts = {"printed": printed.encode(), **{str(file): file.read_bytes() for file in files}}
        return [place for place, text in texts.items() if b"secret-of" in text]


@pytest.fixture
def blocked(tmp_path: Path) -> Blocked:
    return Blocked(tmp_path)


def test_the_verbs_need_no_network(blocked: Blocked, tiny_model: Path, tmp_path: Path) -> None:
    gguf = str(write_gguf(tiny_model, tmp_path / "tiny.gguf"))
    plan = {
        "title": "Tiny",
        "question": "Is the hub left alone?",
        "models": [str(tiny_model)],
        "methods": ["lora", "dora"],
        "tasks": [{"train": "sample-boolq", "rows": 16, "eval_rows": 4}],
        "ranks": [4],
        "learning_rates": [1e-3],
        "seeds": [0],
        "settings": {"epochs": 1.0, "warmup_steps": 1, "batch_size": 8, "dtype": "float32"},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    rows = ["--task", "sample-boolq", "--rows", "16", *SMALL]
    evaluated = ["--task", "sample-boolq", "--eval-rows", "4"]
    commands = [
        ["env"],
        *(
            ["train", "--model", str(tiny_model), "--method", method, *rows, "--output", method]
            for method in ("lora", "dora", "full")
        ),
        ["train", "--model", gguf, *rows, "--output", "of-gguf"],
        *(["eval", run, *evaluated] for run in ("lora", "dora", "full", "of-gguf")),
        ["eval", "dora", *evaluated, "--protocol", "generate"],
        ["eval", "dora/adapter", *evaluated, "--output", "plain"],
        ["report", "lora", "dora", "--output", "report"],
        ["analyze", "lora", "dora", "--output", "analysis"],
        ["study", "plan.yaml", "--output", "study"],
    ]
    printed = blocked(*commands)
    assert printed.count("exit code 0") == len(commands), printed
    assert blocked.asked == []
    assert blocked.leaks(printed) == []


def test_a_task_file_of_lm_eval_with_rows_in_files_needs_no_hub(
    blocked: Blocked, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "rows.jsonl").write_text('{"question": "is it?", "answer": 0}\n')
    (tmp_path / "ours.yaml").write_text(
        "task: ours\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "doc_to_target: answer\ndoc_to_choice: ['yes', 'no']\nmetric_list: [{metric: acc}]\n"
    )
    printed = blocked(
        ["eval", str(tiny_model), "--harness", "lm-eval", "--task", "ours.yaml", "--output", "out"]
    )
    assert "exit code 0" in printed, printed
    assert blocked.asked == []
    assert blocked.leaks(printed) == []


def test_failures_reveal_no_secret(blocked: Blocked, tiny_model: Path) -> None:
    """These ask for the network, and their messages name the hub's address."""
    commands = [
        ["eval", "org/model", "--task", "sample-boolq", "--output", "out"],
        ["eval", str(tiny_model), "--task", "boolq", "--output", "out"],
    ]
    printed = blocked(*commands)
    assert printed.count("cannot be reached") == 2 and "http://hub.invalid" in printed, printed
    assert "Traceback" not in printed and blocked.asked != []
    assert blocked.leaks(printed) == []
