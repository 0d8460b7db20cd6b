"""GGUF files: read with transformers, and kept as safetensors. torch and transformers are imported on use."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doratune.cache import cache_home
from doratune.errors import DoratuneError, InputError
from doratune.records.files import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def read_gguf(path: Path, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file with transformers, dequantised to floats.

    Args:
        path: The file.
        **kwargs: For ``from_pretrained``.

    Returns:
        The model and its tokenizer.

    Raises:
        InputError: If there is no such file, or transformers cannot read it.
    """
    from transformers import AutoTokenizer, GgufConfig

    from doratune.models.whole import load_whole, without_content

    _require_file(path)
    try:
        with _without_bars():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            if not kwargs.pop("content", True):
                model = without_content(str(path.parent), gguf_file=path.name, **kwargs)
                return model, _without_added_ids(tokenizer, model.config.get_text_config().vocab_size)
            model = load_whole(
                str(path.parent),
                gguf_file=path.name,
                # Dense floats: packed GGUF blocks can be neither trained through nor saved.
                quantization_config=GgufConfig(dequantize=True),
                **kwargs,
            )
    except (DoratuneError, MemoryError):
        raise
    except Exception as error:  # a broken file can make the reader raise anything
        raise unreadable(path, error) from error
    return model, _without_added_ids(tokenizer, model.config.get_text_config().vocab_size)


def _without_added_ids(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """The file's tokenizer, without GPT-2's end-of-text token.

    transformers adds it to every byte-level vocabulary, with an id that the embedding has no row for.
    """
    from tokenizers import Tokenizer

    from_file: Any = tokenizer
    backend = json.loads(from_file.backend_tokenizer.to_str())
    within = [token for token in backend["added_tokens"] if token["id"] < rows]
    if len(within) == len(backend["added_tokens"]):
        return tokenizer
    pruned = Tokenizer.from_str(json.dumps({**backend, "added_tokens": within}))
    rebuilt = type(tokenizer)(tokenizer_object=pruned, **tokenizer.init_kwargs)
    rebuilt.chat_template = tokenizer.chat_template
    return rebuilt


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide transformers' progress bars of the conversion: it takes seconds and is announced in one line."""
    from unittest.mock import patch

    import transformers

    from doratune.models._internals import gguf_reader

    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with patch.object(gguf_reader, "tqdm", lambda tensors, **_: tensors):
            yield
    finally:
        if shown:
            bars.enable_progress_bar()


def convert_once(gguf: Path) -> Path:
    """The folder of a GGUF file's weights in safetensors, created on first use and cached by content.

    Args:
        gguf: The file.

    Raises:
        InputError: If there is no such file, or it cannot be read.
    """
    _require_file(gguf)
    folder = cache_home() / "models" / f"{gguf.stem}-{file_sha256(gguf)[:12]}"
    if not (folder / "config.json").is_file():
        write_safetensors(gguf, folder)
    return folder


def write_safetensors(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` as safetensors to ``folder``, which appears only when it is complete."""
    import torch

    logger.info("converting %s to safetensors in %s (once)", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model, tokenizer = read_gguf(gguf, dtype=torch.float32)
        with _without_bars():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            # Another process finished the same conversion first; its result is the same.
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a model that transformers could not read, with the first line of its message."""
    return InputError("the model cannot be read", where="--model", got=f"{path}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of an exception's message, with the lines that continue it."""
    said = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
    end = next((at for at, line in enumerate(lines) if not line.endswith((":", ",", " or"))), len(lines) - 1)
    return " ".join(lines[: end + 1])


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError("there is no such model file", where="--model", got=path, fix="check the path")
