"""Writes a base model with its adapter merged as a GGUF file, and checks what it wrote."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from gguf import GGMLQuantizationType

from doratune.byte_size import byte_size
from doratune.environment import describe_environment
from doratune.errors import DoratuneError, InputError
from doratune.models.builtin import BUILTIN, builtin_gguf
from doratune.models.gguf import read_gguf
from doratune.records.files import file_sha256
from doratune.records.serving import ExportedGguf, GgufCheck
from doratune.serving.adapted import AdaptedBase, open_adapted
from doratune.serving.check import rows_for
from doratune.serving.exporting.config import ExportConfig
from doratune.serving.exporting.gguf_check import check_gguf
from doratune.serving.exporting.gguf_file import GgufFile
from doratune.serving.exporting.gguf_layout import Layout
from doratune.serving.exporting.gguf_plan import Change, Types, compare_with_base, plan_gguf
from doratune.serving.exporting.gguf_writer import Computed
from doratune.serving.exporting.staged_file import refuse_taken_file, staged_file
from doratune.serving.merged_weights import MergedWeights

logger = logging.getLogger(__name__)

UNUSABLE = ".unusable"
"""Added to the name of a file that is not the base with the adapter."""


def export(config: ExportConfig) -> ExportedGguf:
    """Write a base model with its adapter merged as a GGUF file.

    Args:
        config: What is exported, and how.

    Returns:
        What was written, and how far it is from base plus adapter.

    Raises:
        InputError: The adapter, its base or the base's GGUF file cannot be used, the adapter changes what
            has no place in the file, or the output cannot be written. Nothing is written.
        DoratuneError: The file is not the base with the adapter; it is kept with ``UNUSABLE`` after its name.
    """
    refuse_taken_file(config.output)
    began = time.monotonic()
    opened = open_adapted(
        config.target,
        base=config.base,
        allow_other_base=config.allow_other_base,
        dequantised=config.dequantised,
        command="doratune export",
        trust_remote_code=config.trust_remote_code,
    )
    layout = Layout(opened.base.model.config.get_text_config())
    rows = rows_for(opened, config.check_data)
    with _base_file(config, opened) as path:
        file, weights = GgufFile(path), MergedWeights(opened)
        types = Types(config.dtype, config.requantize)
        plan = plan_gguf(file, layout, changes_of(opened, weights), types, untied=bool(weights.untied))
        _refuse_unreadable(path)
        logger.info("comparing %s with the base model", path.name)
        difference = compare_with_base(file, layout, opened.base.parameters, opened.files.rows)
        if difference.overall:
            logger.warning(
                "%s differs from the base that the adapter was trained on by %.2g of its norm (%s by %.2g); "
                "what the adapter changes is computed from that base",
                *(path.name, difference.overall, difference.tensor, difference.largest),
            )
        with staged_file(config.output, plan.size) as staged:
            logger.info("writing %s, %s", config.output, byte_size(plan.size))
            plan.write(staged)
            logger.info("checking it: read back with transformers, %d rows", len(rows))
            check = check_gguf(staged, opened, weights, layout, rows)
            output = config.output if check.usable else config.output.with_name(config.output.name + UNUSABLE)
            staged.rename(output)
        if not check.usable:
            raise _not_the_model(output, check)
        return ExportedGguf(
            target=config.target,
            base=opened.base_record,
            other_base=opened.other_base is not None,
            weights_checksum=opened.checksum,
            base_gguf=path.name,
            base_gguf_sha256=file_sha256(path),
            base_difference=difference.overall,
            base_difference_largest=difference.largest,
            output=str(output),
            bytes=plan.size,
            sha256=file_sha256(output),
            copied=_by_type(file.type(one.source) for one in plan.tensors if not isinstance(one, Computed)),
            computed=_by_type(one.type for one in plan.tensors if isinstance(one, Computed)),
            untied=sorted(weights.untied),
            check=check,
            seconds=time.monotonic() - began,
            environment=describe_environment(),
        )


def changes_of(opened: AdaptedBase, weights: MergedWeights) -> dict[str, Change]:
    """The parameters of the base whose values the adapter changes; of tied ones that stay one, the one."""
    names = weights.computed - (opened.tied.keys() - weights.untied)
    return {name: Change(_shape(opened, name), partial(weights.value, name)) for name in sorted(names)}


def _shape(opened: AdaptedBase, name: str) -> tuple[int, ...]:
    return opened.files.shape(opened.tied.get(name, name))


@contextmanager
def _base_file(config: ExportConfig, opened: AdaptedBase) -> Iterator[Path]:
    """The base's GGUF file."""
    name = opened.base_record.name
    if config.base_gguf is not None:
        yield config.base_gguf.expanduser()
    elif name in BUILTIN:
        with builtin_gguf(name) as (path, _):
            yield path
    elif name.endswith(".gguf"):
        yield Path(name).expanduser()
    else:
        raise InputError(
            "the base model is not a GGUF file, and doratune rewrites one",
            where="--base-gguf",
            got=f"none, and the base {name}",
            expected="the base model's GGUF file, from the hub or by llama.cpp's convert_hf_to_gguf.py",
        )


def _refuse_unreadable(path: Path) -> None:
    """Refuse a file that transformers cannot read: what is written from it could not be checked."""
    try:
        read_gguf(path, dtype=torch.float32, content=False)
    except InputError as error:
        raise InputError(
            "transformers cannot read the base's GGUF file, so the new file could not be checked",
            where=str(path),
            got=error.got,
            fix="merge into a folder instead (doratune merge)",
        ) from error


def _not_the_model(output: Path, check: GgufCheck) -> DoratuneError:
    return DoratuneError(
        "the file that was written is not the base with the adapter",
        where=str(output),
        got=f"{check.weight} is {check.weights_apart:.2g} of its norm away; mean KL divergence "
        f"{check.logits.kl_mean:.2g}",
        expected=f"at most {check.weights_limit:.2g} and {check.kl_limit:.2g}, which rounding can do",
        fix="do not use it; please report this with the base's name",
    )


def _by_type(kinds: Iterable[GGMLQuantizationType]) -> dict[str, int]:
    return dict(Counter(one.name for one in kinds))
