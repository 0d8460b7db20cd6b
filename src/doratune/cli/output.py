"""What the verbs share in talking to the terminal."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any


def quieten_imports() -> None:
    """Keep out what libraries warn of on import: kernels for other hardware, deprecations of their own.

    To be called before they are.
    """
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)


def show_messages() -> None:
    """Show doratune's own messages, plainly and on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("doratune")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def configure_logging() -> None:
    """Show doratune's own messages, and keep the libraries' chatter and bars out."""
    quieten_imports()
    show_messages()

    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|trl|peft|accelerate|torch|lm_eval)\b")


def print_json(data: Any) -> None:
    """Print ``data`` for a machine to read."""
    print(json.dumps(data, indent=2, ensure_ascii=False))
