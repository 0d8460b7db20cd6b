"""What the verbs print, and what they keep libraries from printing."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def quieten_imports() -> None:
    """Silence what libraries log when they are imported; to be called before that."""
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)


def show_messages() -> None:
    """Show doratune's messages on stderr, without level or time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("doratune")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def configure_logging() -> None:
    """Show doratune's messages, and silence the libraries' messages and progress bars."""
    quieten_imports()
    show_messages()

    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|trl|peft|accelerate|torch|lm_eval)\b")


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
