"""Two models' predictions of the next token, compared on a few rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from doratune.errors import DoratuneError, InputError
from doratune.evaluation.target import TEXTS as SHORT_TEXTS
from doratune.memory import available_memory_bytes
from doratune.peft import enable
from doratune.peft.merge_layer import base_name, is_wrapper
from doratune.records.files import read_jsonl, read_text
from doratune.records.serving import LogitCheck
from doratune.serving.adapted import AdaptedBase

TEXTS = (
    *SHORT_TEXTS,
    "Water boils at 100 degrees Celsius at sea level, and it freezes at 0 degrees.",
    "Il était une fois une petite fille qui vivait au bord de la forêt.",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55",
)
"""What models are compared on if the user names no rows."""
ROWS, TOKENS = 16, 128
"""The most rows of a file, and tokens of a row."""
PLACES = 16
"""Positions that are compared at a time, over the whole vocabulary."""
MODELS = 3
"""How many models in float32 must fit in the available memory to be held whole for the check."""

Logits = Callable[[Tensor], Tensor]
"""From a row's token ids, (1, n), to its logits, (n, vocabulary)."""


def rows_for(opened: AdaptedBase, file: Path | None) -> list[Tensor]:
    """The rows to check a model on; one long row where each would read all weights again."""
    rows = check_rows(opened.base.tokenizer, file)
    return rows if fits_whole(opened) else [torch.cat(rows, dim=1)]


def check_rows(tokenizer: PreTrainedTokenizerBase, file: Path | None = None) -> list[Tensor]:
    """The rows to compare two models on, as token ids, (1, n) each.

    Args:
        tokenizer: The models' tokenizer.
        file: Text with one row per line, or JSONL whose rows have a ``text``, or an ``instruction`` and an
            ``output``; None: a few built-in sentences.

    Raises:
        InputError: The file cannot be read, or has no rows.
    """
    texts = TEXTS if file is None else _texts(file)
    ids = (tokenizer(text).input_ids[:TOKENS] for text in texts[:ROWS])
    rows = [torch.tensor([one]) for one in ids if one]
    if not rows:
        raise InputError("the file holds no rows to compare on", where=str(file))
    return rows


def _texts(file: Path) -> Sequence[str]:
    if file.suffix != ".jsonl":
        return [line for line in read_text(file).splitlines() if line.strip()]
    texts = []
    for number, row in enumerate(read_jsonl(file), start=1):
        parts = [row.get("text")] if "text" in row else [row.get("instruction"), row.get("output")]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(
                "a row has no text",
                where=f"{file}, row {number}",
                got=json.dumps(row, ensure_ascii=False),
                expected="a text, or an instruction and an output",
            )
        texts.append("\n".join(map(str, parts)))
    return texts


def logits_of(model: Any) -> Logits:
    """The logits of a model in evaluation mode and float32; norms are computed when weights are there."""

    def logits(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(input_ids=ids.to(model.device), use_cache=False).logits[0].float().cpu()

    return logits


def compare_logits(before: Logits, after: Logits, rows: Iterable[Tensor]) -> LogitCheck:
    """Compare two models' predictions at every position of some rows.

    Args:
        before: The model to compare with.
        after: The other.
        rows: Token ids, (1, n) each.

    Raises:
        DoratuneError: A prediction is not finite.
    """
    largest = total = same = kl_total = kl_largest = 0.0
    count = positions = elements = 0
    for ids in rows:
        count += 1
        for pair in zip(before(ids).split(PLACES), after(ids).split(PLACES), strict=True):
            one, other = (torch.log_softmax(logits.double(), dim=-1) for logits in pair)
            difference = (one - other).abs()
            kl = (one.exp() * (one - other)).sum(dim=-1).clamp(min=0)
            if not (difference.isfinite().all() and kl.isfinite().all()):
                raise DoratuneError("a model's predictions are not finite", got="NaN or infinity")
            largest, total = max(largest, difference.max().item()), total + difference.sum().item()
            same += (one.argmax(dim=-1) == other.argmax(dim=-1)).sum().item()
            kl_total, kl_largest = kl_total + kl.sum().item(), max(kl_largest, kl.max().item())
            positions, elements = positions + len(kl), elements + difference.numel()
    return LogitCheck(
        rows=count,
        positions=positions,
        largest=largest,
        mean=total / elements,
        top1=same / positions,
        kl_mean=kl_total / positions,
        kl_largest=kl_largest,
    )


def distances(check: LogitCheck) -> list[tuple[str, str]]:
    """The figures of a comparison, with their names."""
    return [
        ("largest difference of a log-probability", f"{check.largest:.2g}"),
        ("mean difference", f"{check.mean:.2g}"),
        ("same most likely token", f"{100 * check.top1:.4g} % of {check.positions} positions"),
        ("mean KL divergence", f"{check.kl_mean:.2g}"),
    ]


def recorded(logits: Logits, rows: Sequence[Tensor]) -> Logits:
    """The logits of some rows, computed now, as a function of the row."""
    found = {id(ids): logits(ids) for ids in rows}
    return lambda ids: found[id(ids)]


def fits_whole(opened: AdaptedBase) -> bool:
    """Whether the models that a check compares fit comfortably in memory."""
    return 4 * MODELS * opened.base_record.parameters < available_memory_bytes()


def predictions(opened: AdaptedBase, rows: Sequence[Tensor]) -> Logits:
    """The predictions of a base with its adapter on some rows, computed now, on the engine as in ``eval``."""
    if opened.record is None or opened.record.config.get("engine", "doratune") == "doratune":
        enable(opened.model)
    with filled(opened.model, opened.trained_weight, keep=fits_whole(opened)):
        return recorded(logits_of(opened.model), rows)


@contextmanager
def filled(model: nn.Module, weight: Callable[[str], Tensor], *, keep: bool = False) -> Iterator[None]:
    """Let a model whose base weights have no content compute, with a block's weights at a time.

    Args:
        model: Its parameters without content have one element for all, as in ``open_adapted``.
        weight: Reads a parameter of the base model by its name there.
        keep: Keep all that was read, so that a second row reads nothing.
    """
    hooks = []
    blocks = set(getattr(model, "_no_split_modules", None) or ())

    def put(module: nn.Module, parameters: list[tuple[nn.Module, str, str, nn.Parameter]]) -> None:
        read: dict[int, nn.Parameter] = {}

        def before(*_: Any) -> None:
            for owner, key, name, empty in parameters:
                if id(empty) not in read:
                    read[id(empty)] = nn.Parameter(weight(name).float(), requires_grad=False)
                setattr(owner, key, read[id(empty)])

        def after(*_: Any) -> None:
            for owner, key, _name, empty in parameters:
                setattr(owner, key, empty)
            if not keep:
                read.clear()

        hooks.append(module.register_forward_pre_hook(before))
        hooks.append(module.register_forward_hook(after, always_call=True))

    def visit(module: nn.Module, prefix: str) -> None:
        whole = type(module).__name__ in blocks or not any(True for _ in module.children())
        if whole or is_wrapper(module):
            if parameters := list(_empty(module, prefix)):
                put(module, parameters)
            return
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.")

    visit(model, "")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _empty(module: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """The parameters without content: module, name in the module and in the base model, parameter."""
    for path, owner in module.named_modules():
        for key, parameter in owner.named_parameters(recurse=False):
            if parameter.numel() > 1 and not any(parameter.stride()):
                full = ".".join(part for part in (prefix.rstrip("."), path, key) if part)
                yield owner, key, base_name(full), parameter
