"""The weights of the runs' base model, read layer by layer without building the model."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from doratune.errors import InputError
from doratune.models.config_files import refuse_repeated_keys
from doratune.models.config_settings import config_record
from doratune.models.fingerprint import fingerprint_of_files
from doratune.models.names import refuse_absent_folder
from doratune.models.on_disk import skeleton
from doratune.models.weights import WeightFiles, weights_folder
from doratune.records.base_model import compare_base_models
from doratune.records.run import ModelRecord

logger = logging.getLogger(__name__)


class Base:
    """The base model of one or more runs.

    Args:
        record: A run's record of its base model.

    Attributes:
        linear: Names of all linear layers, in the model's order.

    Raises:
        InputError: The model is not found, or is not the one that the run was trained from.
    """

    def __init__(self, record: ModelRecord) -> None:
        refuse_absent_folder(
            record, where="the run's base model", fix="work in the folder where the run was trained"
        )
        self._folder = weights_folder(record.name)
        refuse_repeated_keys(self._folder)
        model = self.skeleton()
        self._files = WeightFiles(self._folder, model)
        self.linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        fingerprint = fingerprint_of_files(model, self._files, record.name)
        # How weights moved does not depend on the tokenizer, which is not read.
        here = record.model_copy(update={"fingerprint": fingerprint, "config": config_record(model)})
        found = compare_base_models(record, here)
        if not found.same:
            raise InputError(
                "the base model is not the one that the run was trained from",
                where=record.name,
                got=found.difference,
                fix="restore the model that the run was trained from",
            )
        for note in found.notes:
            logger.warning(note)

    def skeleton(self) -> PreTrainedModel:
        """The model's modules and shapes, with no memory for its weights."""
        try:
            return skeleton(str(self._folder))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                "the base model cannot be read",
                where=str(self._folder),
                got=str(error).strip().splitlines()[0],
            ) from error

    def of_kinds(self, kinds: list[str]) -> list[str]:
        """The linear layers whose name ends with one of ``kinds``."""
        return [name for name in self.linear if any(f".{name}".endswith(f".{kind}") for kind in kinds)]

    def shape(self, layer: str) -> tuple[int, ...]:
        """(d_out, d_in) of a linear layer."""
        return self._files.shape(f"{layer}.weight")

    def rows(self, layer: str, part: slice, dtype: torch.dtype) -> Tensor:
        """Some rows of a layer's weight, (n, d_in), in float64, rounded as in a run in ``dtype``."""
        return self._files.rows(f"{layer}.weight", part).to(dtype).double()
