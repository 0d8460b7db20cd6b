"""What libraries warn of is shown, once and on one line; each message that is kept back exists."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from doratune.cli.library_messages import (
    HARMLESS,
    HIDDEN_BARS,
    LIBRARIES,
    Harmless,
    is_harmless,
    show_library_logs,
    show_library_warnings,
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries' messages as the verbs show them, undone after the test."""
    for name in (*LIBRARIES, "torch.utils._pytree"):
        logger = logging.getLogger(name)
        for field in ("handlers", "propagate", "level", "filters"):
            monkeypatch.setattr(logger, field, getattr(logger, field))
    monkeypatch.setattr(warnings, "filters", [("default", None, Warning, None, 0)])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    show_library_logs()
    show_library_warnings()


def literal(message: str) -> str:
    """The longest part of a pattern that is plain text."""
    return max(re.split(r"\.\*|\\\w\+?\*?|[.'<>`+*]", message), key=len)


@pytest.mark.parametrize("one", HARMLESS + HIDDEN_BARS, ids=lambda one: one.message[:30])
def test_hidden_messages_still_exist(one: Harmless) -> None:
    """By its library, of the installed version; else the entry goes."""
    spec = find_spec(one.library)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{one.library} is not installed")
    text = literal(one.message)
    assert len(text) >= 10
    files = Path(next(iter(spec.submodule_search_locations))).rglob("*.py")
    assert any(text in file.read_text(encoding="utf-8", errors="ignore") for file in files), text


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("library", ["transformers", "peft", "trl.trainer", "lm_eval.models.huggingface"])
def test_a_log_line_is_shown_once(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger(library)
    logger.info("nothing")
    for _ in range(3):
        logger.warning("\x1b[1mSome weights\x1b[0m were\n not used: %s", ["lm_head"])
    name = library.partition(".")[0]
    assert capsys.readouterr().err == f"{name} warns: Some weights were not used: ['lm_head']\n"


@pytest.mark.usefixtures("shown")
def test_a_warning_is_one_line_with_its_library(capsys: pytest.CaptureFixture[str]) -> None:
    place = next(Path(path) for path in sys.path if path.endswith("site-packages")) / "peft" / "peft_model.py"
    for _ in range(3):  # each time as if Python had forgotten that it was shown
        warnings.warn_explicit("Found missing\nadapter keys", UserWarning, str(place), 1, registry={})
    assert capsys.readouterr().err == "peft warns: Found missing adapter keys\n"
    warnings.warn_explicit(
        "Setting `save_embedding_layers` to `True` as embedding layers found in `target_modules`.",
        UserWarning,
        str(place),
        2,
    )
    warnings.warn_explicit(
        "`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, str(place), 3
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "message",
    [
        "Found missing adapter keys while loading the checkpoint: ['a'].",
        "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
        "Some weights of LlamaForCausalLM were not initialized from the model checkpoint",
        "bitsandbytes::gemv_4bit: an autograd kernel was not registered to the Autograd key(s)",
        "Unexpected keyword arguments ['a'] for class LoraConfig, these are ignored.",
        "Setting `save_embedding_layers` to `True` as the embedding layer has been resized",
    ],
)
def test_signs_of_wrong_results_are_never_hidden(message: str) -> None:
    assert not any(is_harmless(library, message) for library in (*LIBRARIES, "torch"))
