"""``doratune presets``."""

from __future__ import annotations

from doratune.cli.parse import parse, print_list
from doratune.settings import Settings
from doratune.training.presets import preset_names, preset_title

ABOUT = """List the presets that come with doratune, one per line: named settings, which flags override.

Examples:
  doratune presets
"""


class PresetsCommand(Settings):
    """``doratune presets`` has no flags."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    parse(PresetsCommand, argv, verb="presets", about=ABOUT)
    print_list({name: preset_title(name) for name in preset_names()})
    return 0
