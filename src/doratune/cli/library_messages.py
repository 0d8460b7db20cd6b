"""Libraries' warnings: each is shown once, on one line; only those listed here are hidden.

A warning may be the only sign that a run is wrong: weights missing from a file, an operator without a
gradient. So no library or level is silenced as a whole.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from doratune.launch import launched

LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "lm_eval", "torchao", "bitsandbytes")
"""The libraries whose logs are shown this way; other loggers are left alone."""


@dataclass(frozen=True)
class Harmless:
    """A message that is hidden.

    Attributes:
        library: The library it comes from.
        message: A regular expression for its beginning.
        reason: Why it does not matter to the run.
    """

    library: str
    message: str
    reason: str


_STYLE = re.compile(r"\x1b\[[\d;]*m")
"""What makes a terminal's text bold or coloured; transformers writes it into files too."""

HARMLESS = (
    Harmless(
        "transformers",
        r".\w*gradient_checkpointing\w*. is deprecated",
        "PEFT and TRL use an old name of transformers; it still does the same",
    ),
    Harmless(
        "peft",
        "Setting `save_embedding_layers` to `True` as embedding layers found",
        "an adapter of embeddings is saved with their base weights, which only makes its file larger",
    ),
    Harmless(
        "lm_eval",
        "`pretrained` model kwarg is not of type `str`",
        "doratune loads the model itself and passes lm-eval no argument that it would ignore then",
    ),
    Harmless(
        "lm_eval",
        "Passed an already-initialized model through `pretrained`",
        "lm-eval then assumes one process, which is the case",
    ),
    Harmless(
        "torchao",
        "Failed to load .*torchao/_C",
        "kernels for other Python versions and GPUs, which are not used",
    ),
    Harmless(
        "bitsandbytes", "Failed to load CPU gemm_4bit_forward", "an optional kernel; the usual one is used"
    ),
    Harmless(
        "torch",
        r"<enum '\w+'> is an Enum subclass and is now natively supported",
        "torchao registers an enumeration, which PyTorch no longer needs",
    ),
)
"""Messages of ordinary runs, each examined before it was listed."""

HIDDEN_BARS = (
    Harmless("transformers", "Loading weights", "takes seconds; then the verb says what it loaded"),
    Harmless("transformers", "Writing model shards", "takes seconds; the folder is named at the end"),
    Harmless("transformers", "Converting and de-quantizing GGUF tensors", "once; `models.gguf` announces it"),
    Harmless("datasets", "Generating .* split", "the number of rows is printed, or why there are none"),
    Harmless("datasets", "Saving the dataset", "takes seconds; tokenised rows, for the next run"),
)
"""Progress bars that are not drawn. lm-eval's are: nothing else shows its progress."""


def show_library_logs() -> None:
    """Show the warnings and errors that libraries log. Call it before they are imported, and again after.

    Some log during their import, in which transformers also sets up its own logger. Of several processes the
    first shows them.
    """
    level = logging.WARNING
    if not launched().speaks:
        level = logging.CRITICAL
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what PyTorch's C++ code warns of
    handler = _OneLine(level)
    handler.addFilter(_Fresh())
    for library in LIBRARIES:
        logger = logging.getLogger(library)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("torch.utils._pytree").filters = [_Fresh()]


def show_library_warnings() -> None:
    """Show the warnings that libraries give through ``warnings``."""
    for one in HARMLESS:
        warnings.filterwarnings("ignore", message=one.message)
    # By their text: Python's own registry forgets, as each `warnings.catch_warnings` of a library empties it.
    shown: set[str] = set()
    speaks = launched().speaks

    def show(
        message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any
    ) -> None:
        line = _line(_library(filename) or f"{filename}:{args[0]}", str(message))
        if line not in shown and speaks:
            shown.add(line)
            print(line, file=sys.stderr)

    warnings.showwarning = show


def is_harmless(library: str, message: str) -> bool:
    """Whether a library's message is one of ``HARMLESS``."""
    return any(one.library == library and re.match(one.message, message) for one in HARMLESS)


class _Fresh(logging.Filter):
    """Lets a message through once, and a harmless one never."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        key = record.name.partition(".")[0], record.getMessage()
        fresh = key not in self._seen and not is_harmless(*key)
        self._seen.add(key)
        return fresh


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(_line(record.name.partition(".")[0], record.getMessage()), file=sys.stderr)


def _library(filename: str) -> str | None:
    """The package that an installed file is of."""
    inside = re.search(r"(?:site|dist)-packages[/\\](\w+)", filename)
    return inside[1] if inside else None


def _line(library: str, message: str) -> str:
    return f"{library} warns: {' '.join(_STYLE.sub('', message).split())}"
