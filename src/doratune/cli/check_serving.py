"""``doratune check-serving``."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional

from doratune.cli.parse import AsJson, parse
from doratune.settings import Settings

ABOUT = """Say which servers load a run, an adapter, a merged model or a GGUF file: vLLM, SGLang, TGI,
llama.cpp, Ollama and transformers. Where one does not, say why, and which command makes something that
it loads.

No server is asked: the answers are what was read in their code, at a version and on a day that are printed.

Examples:
  doratune check-serving runs/dora
  doratune check-serving runs/dora-merged
  doratune check-serving path/to/peft_adapter --json
"""


class CheckServingCommand(Settings):
    """The flags of ``doratune check-serving``."""

    target: Annotated[str, Positional]
    """Run directory, folder of an adapter or of a model, or .gguf file."""
    as_json: AsJson = False
    """Print the answers as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(CheckServingCommand, argv, verb="check-serving", about=ABOUT)

    from doratune.cli.output import new_console, print_json, show_messages
    from doratune.report.serving import print_serving
    from doratune.serving.servers.served import check_serving

    show_messages()
    check = check_serving(command.target)
    if command.as_json:
        print_json(check.to_dict())
    else:
        print_serving(check, new_console())
    return 0
