"""A task's rows in the data set's own schema: from the Hugging Face hub, or from a local copy."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from doratune.data.convert import convert_rows
from doratune.data.rows import Row
from doratune.data.tasks import HubSource, Split, Task
from doratune.errors import DoratuneError, InputError
from doratune.hub import HubAnswer, hub_or_cache, looks_like_path

logger = logging.getLogger(__name__)

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def hub_name(source: HubSource, split: Split) -> str:
    """A split's place as one word, such as ``allenai/winogrande/winogrande_xl:validation``."""
    revision = f"@{source.revision}" if source.revision else ""
    config = f"/{source.config}" if source.config else ""
    return f"{source.path}{config}{revision}:{source.splits[split]}"


def load_hub_rows(task: Task, split: Split) -> list[Row]:
    """Download a split, or take it from the cache, and write its rows in the original study's wording.

    Raises:
        DoratuneError: The data set cannot be loaded.
        InputError: Its rows do not match the task.
    """
    source = task.hub
    if source is None:
        raise ValueError(f"the task {task.name} has no rows on the hub")
    name = hub_name(source, split)
    import datasets  # slow to import, and not needed for files and samples

    local = Path(source.path).is_dir()
    if not local and looks_like_path(source.path):
        raise InputError(
            f"there is no such folder with the rows of {task.title}",
            where=name,
            fix="check the path, or give the rows as a file with --data FILE",
        )
    with (
        nullcontext(HubAnswer())
        if local
        else hub_or_cache(source.path, "dataset", revision=source.revision) as answer
    ):
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
                got=answer.failure or f"{type(error).__name__}: {reason[0]}",
                fix="check the connection and try again, or give the rows as a file with --data FILE",
            ) from error
    if answer.failure:
        logger.warning("%s; the rows of %s in the cache are used", answer.failure, task.title)
    return convert_rows(task, originals, name=name)


def find_local(task: Task, directory: Path) -> Path:
    """The file or folder that holds a task's rows in a folder.

    Args:
        task: The rows' task.
        directory: Holds for each task either a file (``boolq.jsonl``, ``boolq.json`` or ``boolq.parquet``)
            or a folder (``boolq``) with the files of the hub's data set; case does not matter.

    Raises:
        InputError: There is nothing for the task, or more than one thing.
    """
    names = {task.name, *(task.name + suffix for suffix in _BUILDERS)}
    found = sorted(path for path in directory.iterdir() if path.name.lower() in names)
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"the folder holds no rows of {task.title}" if not found else f"several files hold {task.title}",
        where=str(directory),
        got=", ".join(path.name for path in found) or None,
        expected=f"one of {', '.join(sorted(names))}",
    )


def load_local_rows(task: Task, split: Split, place: Path) -> list[Row]:
    """Write the rows of a local copy in the original study's wording.

    Args:
        task: A task with rows on the hub, whose schema the copy has.
        split: The part to read of a folder; a file is one part.
        place: The result of :func:`find_local`.

    Raises:
        InputError: The files cannot be read, or their rows do not match the task.
    """
    source = task.hub
    if source is None:
        raise ValueError(f"the task {task.name} has no rows on the hub")
    import datasets  # slow to import, and not needed for files and samples

    try:
        if place.is_dir():
            # A copy of the hub's data set lists its configurations; bare files have only one.
            known = datasets.get_dataset_config_names(str(place))
            config = source.config if source.config in known else None
            loaded = datasets.load_dataset(str(place), config, split=source.splits[split])
        else:
            files = {split: str(place)}
            loaded = datasets.load_dataset(_BUILDERS[place.suffix.lower()], data_files=files, split=split)
        originals = loaded.to_list()
    except Exception as error:  # datasets and the files' formats each raise their own kinds
        raise _unreadable(error, source, split, place) from error
    return convert_rows(task, originals, name=str(place))


def _unreadable(error: Exception, source: HubSource, split: Split, place: Path) -> InputError:
    cause = error.__cause__ or error  # datasets wraps what went wrong in a general sentence
    reason = str(cause).strip().splitlines() or [""]
    config = f", configuration {source.config}" if source.config else ""
    return InputError(
        "the rows cannot be read",
        where=str(place),
        got=f"{type(cause).__name__}: {reason[0]}",
        expected=f"the rows of {source.path}{config}, split {source.splits[split]}, in JSON lines or Parquet",
    )
