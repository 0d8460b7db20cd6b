"""``doratune convert``: an adapter as plain LoRA, with what that costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from doratune.environment import describe_environment
from doratune.errors import DoratuneError, InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.evaluate import read_tasks
from doratune.records.files import write_json_atomic
from doratune.records.folders import refuse_output
from doratune.records.layout import CONVERT_NAME
from doratune.records.serving import ConvertRecord, RankTried
from doratune.serving.adapted import AdaptedBase, AdaptedLayer, open_adapted
from doratune.serving.check import predictions, rows_for
from doratune.serving.converting.best_lora import Conversion
from doratune.serving.converting.card import write_card
from doratune.serving.converting.config import RANKS, ConvertConfig
from doratune.serving.converting.cost import accuracies, check_written
from doratune.serving.converting.exact import convert_exactly
from doratune.serving.converting.lora_folder import refuse_unconverted
from doratune.serving.converting.zeros import unadapted
from doratune.serving.files import refuse_taken, stage

logger = logging.getLogger(__name__)


def convert(config: ConvertConfig) -> ConvertRecord:
    """Convert an adapter into LoRA and write it, with its record, to ``config.output``.

    Args:
        config: The settings.

    Returns:
        The record, which is also the folder's convert.json. On an error nothing is written.

    Raises:
        InputError: The adapter, its base, the rank, the rows or the output cannot be used.
        DoratuneError: No rank keeps to ``config.max_kl``, or an exact conversion is not exact.
    """
    refuse_output(config.output)
    refuse_taken(config.output)
    evaluation = _evaluation(config)
    if evaluation is not None:
        read_tasks(evaluation)  # a hub that cannot be reached is told before the work, not after it
    source = open_adapted(
        config.target,
        base=config.base,
        allow_other_base=config.allow_other_base,
        command="doratune convert",
        dequantised=None,
    )
    refuse_unconverted(source.config, {one.name: one.kind for one in source.layers()}, source.adapter)
    rows = rows_for(source, config.check_data)
    if config.exact:
        return convert_exactly(config, source, rows, evaluation)
    return _convert(config, source, rows, evaluation)


def _convert(
    config: ConvertConfig, source: AdaptedBase, rows: Sequence[Tensor], evaluation: EvalConfig | None
) -> ConvertRecord:
    """Write the LoRA of the rank that was asked for, or of the smallest that keeps to ``config.max_kl``."""
    ranks = _ranks(config, source)
    with stage(config.output, size=_bytes(source, ranks[-1])) as staged:
        conversion = Conversion(source, ranks[-1])
        before = predictions(source, rows)
        tried: list[RankTried] = []
        for rank in ranks:
            conversion.write(staged.folder, rank)
            check = check_written(before, staged.folder, rows)
            tried.append(RankTried(rank=rank, left_out=conversion.left_out(rank), kl=check.kl_mean))
            if config.max_kl is None or check.kl_mean <= config.max_kl:
                break
            logger.info("rank %d: a mean KL of %.2g", rank, check.kl_mean)
        else:
            best = min(tried, key=lambda one: one.kl)
            raise DoratuneError(
                "no rank keeps to this KL divergence",
                where="--max-kl",
                got=f"at best {best.kl:.3g}, with rank {best.rank}",
                expected=f"at most {config.max_kl:g}",
                fix="allow more, or convert with --exact",
            )
        record = ConvertRecord(
            source=config.target,
            method="dora" if source.config.use_dora else "lora",
            base=source.base_record,
            weights_checksum=source.checksum,
            rank=rank,
            source_rank=max(one.rank for one in source.layers()),
            left_out=conversion.left_out(rank),
            least=conversion.least(rank),
            layers=conversion.layers(rank),
            tried=tried if config.rank == "auto" else [],
            max_kl=config.max_kl,
            check=check,
            noise=None,
            tasks=accuracies(evaluation, staged.folder),
            notes=conversion.notes(rank),
            environment=describe_environment(),
        )
        write_json_atomic(staged.folder / CONVERT_NAME, record.to_dict())
        write_card(staged.folder, record, source.record)
    return record


def _evaluation(config: ConvertConfig) -> EvalConfig | None:
    """The evaluation of the source; None without tasks."""
    if not config.task:
        return None
    return EvalConfig(
        target=config.target,
        task=config.task,
        data=config.data,
        eval_rows=config.eval_rows,
        format=config.format,
        model=config.base,
        allow_other_base=config.allow_other_base,
        output=config.output,
    )


def _ranks(config: ConvertConfig, source: AdaptedBase) -> list[int]:
    """The ranks to try, ascending."""
    sizes = {one.name: _size(one) for one in source.layers() if one.kind != "tokens"}
    if not sizes:
        raise InputError("the adapter has no adapted layers, only tokens", where=str(source.adapter))
    name = max(sizes, key=sizes.__getitem__)
    if config.rank == "auto":
        fitting = [rank for rank in RANKS if rank <= sizes[name]]
        return fitting or [sizes[name]]
    assert config.rank is not None
    if config.rank > sizes[name]:
        raise InputError(
            "the rank is above the size of every adapted layer",
            where="--rank",
            got=config.rank,
            expected=f"at most {sizes[name]}, with which {name} is exact",
        )
    return [config.rank]


def _size(layer: AdaptedLayer) -> int:
    """The smaller of a layer's two dimensions."""
    return min(layer.layer.get_base_layer().weight.shape)


def _bytes(source: AdaptedBase, rank: int) -> int:
    """The size of a LoRA's file, with what the adapter holds besides."""
    layers = {
        one.name: one.layer.get_base_layer().weight.shape for one in source.layers() if one.kind != "tokens"
    }
    shapes = [*layers.values(), *unadapted(source.base.model, layers).values()]
    beside = sum(one.numel() * one.element_size() for one in source.replaced().values())
    return 4 * rank * sum(map(sum, shapes)) + beside
