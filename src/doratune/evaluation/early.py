"""What of an evaluation can be refused before torch is imported and a model is loaded."""

from __future__ import annotations

from doratune.data.mix import without_mix
from doratune.data.reader import read_rows
from doratune.data.tasks import get_task
from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import Found, find_trained, output_folder
from doratune.models.names import refuse_unknown_model
from doratune.records.layout import refuse_output


def refuse_early(config: EvalConfig) -> Found:
    """Refuse targets, tasks, files and outputs that cannot be used, of what shows without a model.

    Returns:
        What the target is.

    Raises:
        InputError: One cannot be used.
    """
    refuse_unknown_model(config.target, where="doratune eval", what="run, adapter or model")
    if config.model is not None:
        refuse_unknown_model(config.model)
    if config.format == "continuation":
        refuse_generated_texts(config, "continuation")
    if not config.task:
        raise InputError("no task to evaluate", where="--task", fix="name one or more tasks")
    names = without_mix(config.task)
    if config.data is not None and len(names) != 1:
        raise InputError("one file holds the rows of one task", where="--task", got=" ".join(config.task))
    if config.split == "validation" and config.data is None:
        raise InputError(
            "there are no validation rows but those of a file", where="--split", fix="add --data"
        )
    found = find_trained(config.target)
    refuse_output(output_folder(config, found))
    own = {one.task for one in found.record.data} if found.record else set()
    for name in names:
        if name not in own:
            get_task(name)
    if config.data is not None and not config.data.is_file():
        read_rows(config.data)  # says what is wrong with it
    return found


def refuse_generated_texts(config: EvalConfig, form: str) -> None:
    """Refuse to look for answers in generated text where a row has no labels.

    Raises:
        InputError: The format has none.
    """
    if config.protocol == "generate" and form != "instruct":
        raise InputError(
            "generated text can only be matched against answer labels",
            where="--protocol generate",
            got=f"--format {form}",
            expected="--format instruct",
        )
