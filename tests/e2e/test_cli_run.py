"""``doratune run``: scripts that know nothing of doratune, run as Python runs them, on the engine."""

from __future__ import annotations

import importlib
import importlib.util
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from cli_support import Cli
from quick_start import run_python
from safetensors.torch import load_file

from doratune.cli.run import _after_import

SCRIPTS = Path(__file__).parent / "scripts"
PLAIN = [sys.executable]
VERB = [sys.executable, "-m", "doratune", "run"]
MODULE = [sys.executable, "-m", "doratune.run"]
LAUNCHED = {
    "accelerate": [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"),
        *("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "-m", "doratune.run"),
    ],
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
        *("-m", "doratune.run"),
    ],
}


def launch(runner: list[str], *command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*runner, *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        # A shell's background jobs ignore Ctrl-C, and so would the scripts that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@dataclass(frozen=True)
class Training:
    """What a training script left."""

    losses: list[float]
    adapter: dict[str, torch.Tensor]
    err: str


def train(runner: list[str] | None, script: str, output: Path) -> Training:
    """Train with a script; without a runner, by Python alone."""
    command = [SCRIPTS / script, "--output_dir", output]
    result = (
        run_python(*command, cwd=output.parent)
        if runner is None
        else launch(runner, *command, cwd=output.parent)
    )
    assert result.returncode == 0, result.stderr
    losses = json.loads(result.stdout.splitlines()[-1])
    return Training(losses, load_file(output / "adapter_model.safetensors"), result.stderr)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    """Each script run by Python alone."""
    folder = tmp_path_factory.mktemp("plain")
    return {script: train(None, script, folder / script) for script in ("sft.py", "trainer.py")}


def own_lines(err: str) -> list[str]:
    """What doratune itself said; a library's line may hold any word, as it may hold a path."""
    return [line for line in err.splitlines() if line.startswith("doratune: ")]


def assert_same(ours: Training, peft: Training, layers: int) -> None:
    assert not own_lines(peft.err)
    assert own_lines(ours.err) == [
        f"doratune: {layers} Linear layers on the engine",
        f"doratune: {layers} of {layers} LoRA and DoRA layers ran on the engine in the first forward pass",
    ]
    assert len(ours.losses) == 5 and len(set(ours.losses)) == 5
    # Rounding in five AdamW steps, measured: 1e-7 of a loss, 3e-7 in a weight of up to 0.2.
    assert ours.losses == pytest.approx(peft.losses, rel=5e-6)
    assert ours.adapter.keys() == peft.adapter.keys()
    for name, value in ours.adapter.items():
        torch.testing.assert_close(value, peft.adapter[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_trl_sft_script(plain: dict[str, Training], tmp_path: Path) -> None:
    assert_same(train(VERB, "sft.py", tmp_path / "out"), plain["sft.py"], layers=10)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHED)
def test_launchers(launcher: str, plain: dict[str, Training], tmp_path: Path) -> None:
    assert_same(train(LAUNCHED[launcher], "trainer.py", tmp_path / "out"), plain["trainer.py"], layers=4)


def test_the_scripts_know_nothing_of_doratune() -> None:
    for script in SCRIPTS.glob("*.py"):
        assert "doratune" not in script.read_text(encoding="utf-8")


def write(path: Path, code: str) -> Path:
    path.write_text(dedent(code), encoding="utf-8")
    return path


NO_MODEL = "doratune: the script built no PEFT model with LoRA or DoRA layers\n"


def assert_as_python(*command: object, cwd: Path, said: str = NO_MODEL) -> subprocess.CompletedProcess[str]:
    """The same output, errors and exit code by Python and by the verb; Python's result."""
    expected = launch(PLAIN, *command, cwd=cwd)
    for runner in (VERB, MODULE):
        result = launch(runner, *command, cwd=cwd)
        assert (result.stdout, result.returncode) == (expected.stdout, expected.returncode), result.stderr
        # A traceback begins with the frames of whoever runs the script.
        own = expected.stderr.removeprefix("Traceback (most recent call last):\n")
        assert result.stderr.endswith(own + said)
        assert own_lines(result.stderr) == said.splitlines()
    return expected


DESCRIBES_ITSELF = """
    import __main__, json, sys, neighbour
    print(json.dumps([sys.argv, sys.path, __name__, __file__, __package__, __doc__, str(__spec__)]))
    print(__main__.__dict__ is globals(), type(__loader__).__name__, neighbour.HERE)
    assert not {"torch", "transformers", "peft", "numpy", "pydantic"} & set(sys.modules)
"""


@pytest.mark.parametrize("safe_path", [False, True])
def test_the_script_finds_what_python_gives_it(
    safe_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "neighbour.py", "HERE = True")
    write(elsewhere / "script.py", DESCRIBES_ITSELF)
    (tmp_path / "link.py").symlink_to(elsewhere / "script.py")
    if safe_path:
        monkeypatch.setenv("PYTHONSAFEPATH", "1")
        monkeypatch.setenv("PYTHONPATH", str(elsewhere), prepend=":")
    for name in ("elsewhere/script.py", "link.py"):
        result = assert_as_python(name, "--help", "--rate", "1e-3", "-h", "--", "x y", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout.splitlines()[0])[0][1:3] == ["--help", "--rate"]


def test_the_script_has_its_own_help(tmp_path: Path) -> None:
    script = write(tmp_path / "script.py", "import argparse\nargparse.ArgumentParser().parse_args()")
    assert "usage: script.py" in assert_as_python(script, "--help", cwd=tmp_path, said="").stdout
    assert assert_as_python(script, "--no-such-flag", cwd=tmp_path, said="").returncode == 2


ENDINGS = {
    "pass": 0,
    "sys.exit(3)": 3,
    "sys.exit('a last word')": 1,
    "sys.exit()": 0,
    "{}['missing']": 1,
    "os.kill(os.getpid(), signal.SIGINT)": -signal.SIGINT,
    "from doratune.errors import InputError\nraise InputError('of the script')": 1,
    "this is no Python": 1,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_script_ends_as_under_python(ending: str, tmp_path: Path) -> None:
    script = write(tmp_path / "script.py", f"import os, signal, sys\nprint('begun')\n{ending}\n")
    said = NO_MODEL if ending == "pass" else ""
    assert assert_as_python(script, cwd=tmp_path, said=said).returncode == ENDINGS[ending]


TRAINS_A_FROZEN_ADAPTER = """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from torch import nn

    def base():
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))

    get_peft_model(base(), LoraConfig(target_modules=["0"])).save_pretrained("adapter")
    model = PeftModel.from_pretrained(base(), "adapter").train()
    before = [one.clone() for one in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(4):
        model(torch.ones(1, 8, requires_grad=True)).sum().backward()
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
"""


def test_a_script_that_trains_a_frozen_adapter_gets_a_warning(tmp_path: Path) -> None:
    script = write(tmp_path / "script.py", TRAINS_A_FROZEN_ADAPTER)
    result = launch(VERB, script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    warned = [line for line in own_lines(result.stderr) if "engine" not in line]
    assert len(warned) == 1 and "is_trainable=True" in warned[0]


SPAWNS = """
    import atexit, multiprocessing, pickle, threading, time

    class Row:
        pass

    def double(number):
        return 2 * number, __name__

    def outlive():
        time.sleep(0.2)
        print(type(pickle.loads(pickle.dumps(Row()))).__name__)

    if __name__ == "__main__":
        for method in ("spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                print(pool.map(double, [1, 2]))
        threading.Thread(target=outlive).start()
        atexit.register(outlive)
"""


def test_processes_threads_and_exit_handlers_find_the_script(tmp_path: Path) -> None:
    script = write(tmp_path / "script.py", SPAWNS)
    result = assert_as_python(script, cwd=tmp_path)
    assert "__mp_main__" in result.stdout and result.stdout.count("Row") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no script", "doratune run SCRIPT"]),
        (["no_such.py", "--flag"], ["no_such.py", "No such file"]),
        (["."], ["Is a directory"]),
        (["--flag", "script.py"], ["--flag", "first"]),
    ],
)
def test_no_script(cli: Cli, arguments: list[str], words: list[str]) -> None:
    outcome = cli("run", *arguments)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert all(word in outcome.err for word in words)


def test_only_the_first_of_several_processes_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write(tmp_path / "script.py", "pass")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", NO_MODEL), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert launch(VERB, script, cwd=tmp_path).stderr == said


def test_looking_for_a_package_does_not_spend_the_step_after_its_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "stub_of_a_package.py", "READY = True")
    monkeypatch.syspath_prepend(tmp_path)
    finders, steps = list(sys.meta_path), []
    _after_import("stub_of_a_package", lambda: steps.append(sys.modules["stub_of_a_package"].READY))
    assert importlib.util.find_spec("stub_of_a_package") is not None and not steps
    importlib.import_module("stub_of_a_package")
    assert steps == [True] and sys.meta_path == finders
    _after_import("stub_of_a_package", lambda: steps.append("at once"))
    assert steps == [True, "at once"]
    del sys.modules["stub_of_a_package"]
