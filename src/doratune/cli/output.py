"""What the verbs print."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doratune.cli.library_messages import show_library_logs, show_library_warnings
from doratune.launch import launched

if TYPE_CHECKING:
    from rich.console import Console


def show_messages() -> None:
    """Show doratune's messages on stderr, without level or time; the first of several processes does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("doratune")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if launched().speaks else logging.CRITICAL)
    logger.propagate = False


def configure_logging() -> None:
    """Show doratune's messages and the libraries' warnings, without their progress bars (``HIDDEN_BARS``)."""
    show_messages()
    show_library_logs()

    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    show_library_logs()
    show_library_warnings()


def new_console(*, stderr: bool = False) -> Console:
    """A console that prints names and titles as they are: ``[red]`` and ``:x:`` may be parts of them."""
    from rich.console import Console

    return Console(file=sys.stderr if stderr else None, markup=False, emoji=False)


def print_paths(paths: Sequence[Path], console: Console) -> None:
    """Print which files were written."""
    console.print("written: " + ", ".join(map(str, paths)), highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Print ``data`` as JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False))
