"""A task's rows from the Hugging Face hub."""

from __future__ import annotations

from typing import Any, cast

from doratune.data.convert import convert_rows
from doratune.data.rows import Row
from doratune.data.tasks import HubSource, Split, Task
from doratune.errors import DoratuneError


def hub_name(source: HubSource, split: Split) -> str:
    """The place of a split in one word, such as ``allenai/winogrande/winogrande_xl:validation``."""
    revision = f"@{source.revision}" if source.revision else ""
    config = f"/{source.config}" if source.config else ""
    return f"{source.path}{config}{revision}:{source.splits[split]}"


def load_hub_rows(task: Task, split: Split) -> list[Row]:
    """Download (or take from the local cache) a split and word its rows as the original study does.

    Raises:
        DoratuneError: The data set cannot be had.
        InputError: Its rows are not what the task says they are.
    """
    source = task.hub
    if source is None:
        raise ValueError(f"the task {task.name} has no rows on the hub")
    name = hub_name(source, split)
    import datasets  # slow to import, and not needed for files and samples

    try:
        loaded = datasets.load_dataset(
            source.path, source.config, split=source.splits[split], revision=source.revision
        )
        originals = cast(list[dict[str, Any]], loaded.to_list())
    except Exception as error:  # the hub, the network and the files' formats each raise their own kinds
        reason = str(error).strip().splitlines() or [""]
        raise DoratuneError(
            f"the rows of {task.title} could not be loaded from the hub",
            where=name,
            got=f"{type(error).__name__}: {reason[0]}",
            fix="check the connection and try again, or give the rows as a file with --data FILE",
        ) from error
    return convert_rows(task, originals, name=name)
