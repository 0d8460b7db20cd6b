"""``doratune export`` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cli_support import Cli
from gguf_file import write_gguf


def test_a_run_becomes_a_gguf_file(cli: Cli, dora_run: Path, tiny_model: Path) -> None:
    base = write_gguf(tiny_model, Path("base.gguf"), "Q4_1")
    flags = [dora_run, "--to", "gguf", "--base-gguf", base, "--output", "new.gguf"]
    refused = cli("export", *flags)
    assert refused.code == 2 and "--requantize Q8_0" in refused.err and not Path("new.gguf").exists()
    done = cli("export", *flags, "--requantize", "Q8_0")
    assert done.code == 0 and "differs from the base" in done.err
    assert "tensors with the adapter: 10 Q8_0" in done.out and "written: new.gguf" in done.out
    again = cli("export", *flags, "--requantize", "Q8_0")
    assert again.code == 2 and "already there" in again.err

    Path("rows.txt").write_text("The sky is blue.\nIs it?\n", encoding="utf-8")
    flags[-1] = "other.gguf"
    done = cli("export", *flags, "--dtype", "F16", "--check-data", "rows.txt", "--json")
    record = json.loads(done.out)
    assert done.code == 0 and record["check"]["usable"] and record["check"]["logits"]["rows"] == 2
    assert record["computed"] == {"F16": 10} and record["output"] == "other.gguf"
    assert sorted(one.name for one in Path().iterdir()) == ["base.gguf", "new.gguf", "other.gguf", "rows.txt"]


def test_a_run_whose_weights_changed_is_refused(cli: Cli, dora_run: Path, tiny_model: Path) -> None:
    run = Path(shutil.copytree(dora_run, "changed"))
    file = run / "adapter" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    base = write_gguf(tiny_model, Path("base.gguf"))
    done = cli("export", run, "--to", "gguf", "--base-gguf", base, "--output", "new.gguf")
    assert done.code == 2 and not Path("new.gguf").exists()
