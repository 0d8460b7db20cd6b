"""``doratune models``."""

from __future__ import annotations

from doratune.cli.parse import parse, print_list
from doratune.errors import InputError, did_you_mean
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.settings import Settings

ABOUT = """List the built-in models, one per line, or print the folder of one for Python and other programs.

A built-in model comes from a package on the package index, not from the hub. Its weights are converted to
safetensors once, in the cache.

Examples:
  doratune models
  doratune models --path smollm2-135m
"""


class ModelsCommand(Settings):
    """The flags of ``doratune models``."""

    path: str | None = None
    """Print the folder of this model, and create it if necessary."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(ModelsCommand, argv, verb="models", about=ABOUT)
    if command.path is None:
        print_list({name: f"{model.title}, from {model.requirement}" for name, model in BUILTIN.items()})
        return 0
    if command.path not in BUILTIN:
        raise InputError(
            "there is no built-in model of this name",
            where="--path",
            got=command.path,
            expected=f"one of {', '.join(BUILTIN)}",
            fix=did_you_mean(command.path, BUILTIN),
        )

    from doratune.cli.output import show_messages

    show_messages()
    folder, _ = resolve_builtin(command.path)
    print(folder)
    return 0
