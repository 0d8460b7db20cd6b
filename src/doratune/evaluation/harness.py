"""lm-evaluation-harness on a run, an adapter or a base model.

Rows, prompts, scores, metrics and the files' contents are lm-eval's. doratune loads the model as for
``doratune eval`` and decides where the results go. They do not become an :class:`Evaluation` in a record,
because lm-eval has other metrics and a name may stand for a whole group of tasks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel

from doratune import __version__
from doratune.errors import DoratuneError, InputError, did_you_mean
from doratune.evaluation._internals import is_multimodal, name_of, runs_programs, serialised, table
from doratune.evaluation.batching import base_model, evaluation_mode, not_finite
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import find_trained, output_folder
from doratune.evaluation.target import Target, load_target
from doratune.hub import hub_or_cache, offline
from doratune.records.files import write_text_atomic
from doratune.records.folders import refuse_output
from doratune.records.layout import HARNESS_NAME

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class _Requested:
    """The task, group or tag that a name on the command line stands for in lm-eval."""

    name: str
    items: list[Task | Group]


def evaluate_with_lm_eval(config: EvalConfig, *, overwrite: bool = False) -> dict[str, dict[str, Any]]:
    """Let lm-eval evaluate a run, an adapter or a base model.

    All checks of the input come before the model is loaded. The results of each name are written as soon as
    they are there, to ``lm-eval/<name>`` in the run directory: ``results.json`` and, for every task in it,
    ``samples_<task>.jsonl`` with one line per row.

    Args:
        config: The settings; ``task`` holds lm-eval's names of tasks, groups and tags, or its YAML files.
            ``data``, ``format`` and ``protocol`` are not used.
        overwrite: Replace results that are already there.

    Returns:
        lm-eval's results without the rows, by name.

    Raises:
        InputError: lm-eval is not installed, or the target or a task cannot be used.
        DoratuneError: The rows of a task cannot be loaded, or the model's logits are not finite.
    """
    _require_lm_eval()
    if not config.task:
        raise InputError("no task to evaluate", where="--task", fix="name one or more of lm-eval's tasks")
    found = find_trained(config.target)
    folder = output_folder(config, found) / HARNESS_NAME
    refuse_output(folder)
    requested = {one.name: one for one in map(_load_task, dict.fromkeys(config.task))}
    if len(requested) != len(set(config.task)):
        raise InputError("two files define a task of one name", where="--task", got=" ".join(config.task))
    for name in requested:
        if not overwrite and (folder / name / RESULTS_NAME).exists():
            raise InputError(
                "these results already exist",
                where=str(folder / name / RESULTS_NAME),
                fix="add --overwrite to replace them, or --output to write elsewhere",
            )
    target = load_target(config, found)
    results = {}
    for name, one in requested.items():
        results[name] = _evaluate_task(target, one, config, folder / name)
        logger.info("written: %s", folder / name / RESULTS_NAME)
    return results


def results_table(results: Mapping[str, Any]) -> str:
    """lm-eval's own table of the results of one task or group, in Markdown."""
    parts = ["results", *(["groups"] if results.get("groups") else [])]
    return "\n".join(table(results, part) for part in parts)


def _require_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise InputError(
            "lm-evaluation-harness is not installed",
            where="--harness lm-eval",
            fix="pip install 'doratune[lm-eval]'",
        )


@cache
def _manager() -> TaskManager:
    """lm-eval's index of its tasks, which takes seconds to build."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _load_task(name: str) -> _Requested:
    """Find a task and its rows.

    Raises:
        InputError: There is no such task, its file does not define one, or it does not suit a text model.
        DoratuneError: Its rows cannot be loaded.
    """
    manager = _manager()
    is_file = name not in manager.task_index and Path(name).is_file()
    if name not in manager.task_index and not is_file:
        raise InputError(
            "lm-eval has no such task",
            where="--task",
            got=name,
            expected="a task, group or tag of lm-eval, or a YAML file that defines a task",
            fix=did_you_mean(name, manager.all_tasks),
        )
    # A task in a file may have its rows in files too, so this is tried before the hub is asked.
    loaded = _loaded_offline(name) if is_file else None
    if loaded is None:
        with hub_or_cache(None) as answer:
            try:
                loaded = manager.load([name])
            except Exception as error:  # the file, the task's own code, the hub and the network
                reason = str(error).strip().splitlines() or [""]
                kind = InputError if is_file else DoratuneError
                raise kind(
                    "lm-eval could not load a task",
                    where=name,
                    got=f"{type(error).__name__}: {reason[0]}"
                    + (f" ({answer.failure})" if answer.failure else ""),
                    expected="a YAML file that defines one task" if is_file else None,
                    fix=None if is_file else "check the connection and try again",
                ) from error
        if answer.failure:
            logger.warning("%s; the rows of %s in the cache are used", answer.failure, name)
    for task in loaded["tasks"].values():
        _refuse_unsuitable(task)
    groups = loaded.get("groups", {})
    inner = {child for children in loaded.get("group_map", {}).values() for child in children}
    outer: list[Task | Group] = [group for group in groups.values() if group.name not in inner]
    items = outer or list(loaded["tasks"].values())
    return _Requested(name_of(items[0]) if is_file else name, items)


def _loaded_offline(name: str) -> Any:
    with offline():
        try:
            return _manager().load([name])
        except Exception:  # tried again with the hub, whose error tells more
            return None


def _refuse_unsuitable(task: Task) -> None:
    if runs_programs(task):
        raise InputError(
            "the task runs code that the model writes, which doratune does not do",
            where="--task",
            got=name_of(task),
            fix="run lm-eval itself in a sandbox: the adapter is a plain PEFT adapter",
        )
    if is_multimodal(task):
        raise InputError("the task is not text only", where="--task", got=name_of(task))


def _evaluate_task(target: Target, requested: _Requested, config: EvalConfig, folder: Path) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models import huggingface

    # Decorators hide both signatures from the type checker.
    wrap, simple_evaluate = cast(Any, huggingface.HFLM), cast(Any, lm_eval.simple_evaluate)
    wrapped = wrap(
        pretrained=target.model,
        tokenizer=target.tokenizer,
        batch_size=config.eval_batch_size,
        # The logits are float32 in ``evaluation_mode``; by default their softmax might not be.
        softmax_dtype="float32",
    )
    where = f"{config.target}, {requested.name}"
    with evaluation_mode(target.model), _refusing_not_finite(base_model(target.model), where):
        found = simple_evaluate(
            model=wrapped,
            tasks=requested.items,
            task_manager=_manager(),
            batch_size=config.eval_batch_size,
            limit=config.eval_rows,
        )
    samples = found.pop("samples")
    results = {"doratune": _provenance(target, config), **found}
    for name, rows in samples.items():
        lines = [json.dumps(row, ensure_ascii=False, default=serialised) for row in rows]
        file = f"samples_{name}.jsonl".replace("/", "_")  # a task of the user's own may have any name
        write_text_atomic(folder / file, "".join(f"{line}\n" for line in lines))
    # NaN and infinities are written as lm-eval does, rather than losing hours of its work.
    text = json.dumps(results, indent=2, ensure_ascii=False, default=serialised)
    write_text_atomic(folder / RESULTS_NAME, text + "\n")
    return json.loads(text)


@contextmanager
def _refusing_not_finite(model: PreTrainedModel, where: str) -> Iterator[None]:
    """Refuse logits that are NaN or infinite, with which lm-eval would go on counting."""

    def look(_head: object, _inputs: object, logits: torch.Tensor) -> None:
        # A logit of -inf is legitimate.
        if not torch.isfinite(logits.amax()):
            raise not_finite(where, "logits that are NaN or infinite")

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_hook(look)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _provenance(target: Target, config: EvalConfig) -> dict[str, Any]:
    """Facts about the model that lm-eval cannot know, as it did not load it."""
    return {
        "version": __version__,
        "target": config.target,
        "method": target.record.method,
        "model": (target.other_base or target.record.model).to_dict(),
        "scored": target.scored.to_dict(),
        "speedups": [one.to_dict() for one in target.speedups],
    }
