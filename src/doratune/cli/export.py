"""``doratune export``."""

from __future__ import annotations

from doratune.cli.parse import AsJson, parse, part
from doratune.serving.exporting.config import ExportConfig

ABOUT = """Write a base model with its adapter merged as a GGUF file, for llama.cpp, Ollama and others. The
base's own GGUF file is rewritten: metadata, tokenizer and tensors that the adapter does not change are copied
byte for byte. The new file is read back with transformers and compared with base plus adapter before it gets
its name.

Examples:
  doratune export runs/dora --to gguf --output model.gguf --requantize Q8_0
  doratune export runs/llama --to gguf --base-gguf llama-7b.F16.gguf --output model.gguf
  doratune export path/to/peft_adapter --to gguf --base-gguf base.Q4_K_M.gguf --dtype F16 --output model.gguf
"""


class ExportCommand(ExportConfig):
    """The flags of ``doratune export``."""

    as_json: AsJson = False
    """Print what was written as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(ExportCommand, argv, verb="export", about=ABOUT)

    from doratune.cli.output import configure_logging, new_console, print_json
    from doratune.report.terminal import print_export
    from doratune.serving.exporting.export import export

    configure_logging()
    written = export(part(ExportConfig, command))
    if command.as_json:
        print_json(written.to_dict())
    else:
        print_export(written, new_console())
    return 0
