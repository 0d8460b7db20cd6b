"""What libraries warn of is shown, one line each and once; only what is listed here is kept back.

A warning may be the only sign that a run is wrong: weights that were missing from a file, gradients that an
operator does not have. So nothing is silenced by its library or its level.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "lm_eval", "torchao", "bitsandbytes")
"""Whose logs are shown in our way; other loggers are left as they are."""


@dataclass(frozen=True)
class Harmless:
    """A message that is kept back.

    Attributes:
        library: Which library says it.
        message: How it begins, a regular expression.
        reason: Why it tells nothing about the run.
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
        "PEFT and TRL ask transformers by a name that it has changed; it still does the same",
    ),
    Harmless(
        "peft",
        "Setting `save_embedding_layers` to `True` as embedding layers found",
        "an adapter of embeddings is saved with their base, which makes its file larger only",
    ),
    Harmless(
        "lm_eval",
        "`pretrained` model kwarg is not of type `str`",
        "doratune loads the model itself and gives lm-eval no argument that this would make it ignore",
    ),
    Harmless(
        "lm_eval",
        "Passed an already-initialized model through `pretrained`",
        "there is one process, as lm-eval then assumes",
    ),
    Harmless(
        "torchao", "Failed to load .*torchao/_C", "kernels for other Pythons and GPUs, which are not used"
    ),
    Harmless(
        "bitsandbytes", "Failed to load CPU gemm_4bit_forward", "an optional kernel; the usual one is used"
    ),
    Harmless(
        "torch",
        r"<enum '\w+'> is an Enum subclass and is now natively supported",
        "torchao registers an enumeration in a way that PyTorch has made unnecessary",
    ),
)
"""What ordinary runs give, each looked at once."""

HIDDEN_BARS = (
    Harmless("transformers", "Loading weights", "seconds; the verb says next what it has loaded"),
    Harmless("transformers", "Writing model shards", "seconds; the folder is named at the end"),
    Harmless("transformers", "Converting and de-quantizing GGUF tensors", "once; `models.gguf` announces it"),
    Harmless("datasets", "Generating .* split", "the number of rows is said, or why there are none"),
    Harmless("datasets", "Saving the dataset", "seconds; tokenised rows, for the next run"),
)
"""Progress bars that are not drawn. lm-eval's are: nothing else tells how far it is."""


def show_library_logs() -> None:
    """Show what libraries log as warnings and errors; to be called before they are imported, and after.

    Some log while they are imported, and transformers sets its own logger up then.
    """
    handler = _OneLine(logging.WARNING)
    handler.addFilter(_Fresh())
    for library in LIBRARIES:
        logger = logging.getLogger(library)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    logging.getLogger("torch.utils._pytree").filters = [_Fresh()]


def show_library_warnings() -> None:
    """Show what libraries warn of by ``warnings``."""
    for one in HARMLESS:
        warnings.filterwarnings("ignore", message=one.message)
    # By their text: Python's own registry forgets, as each `warnings.catch_warnings` of a library empties it.
    shown: set[str] = set()

    def show(
        message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any
    ) -> None:
        line = _line(_library(filename) or f"{filename}:{args[0]}", str(message))
        if line not in shown:
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
