"""``doratune methods``."""

from __future__ import annotations

from doratune.cli.parse import parse, print_list
from doratune.methods.find import get_method, method_names
from doratune.settings import Settings

ABOUT = """List the training methods, one per line.

Examples:
  doratune methods
"""


class MethodsCommand(Settings):
    """``doratune methods`` has no flags."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    parse(MethodsCommand, argv, verb="methods", about=ABOUT)
    print_list({name: get_method(name).description for name in method_names()})
    return 0
