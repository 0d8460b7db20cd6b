"""TRL's SFTTrainer, made to use each row once per epoch and to stop at the first number that is not finite.

A loss or gradient that is not finite spoils every weight at the next optimizer step, and then NaN silently
trains to the end. Loss and gradient are checked when the Trainer logs them, the parameters after each step,
before anything is saved.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute
import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from doratune.data.encode import IGNORED
from doratune.errors import DivergedError
from doratune.peft import dora_norms, hold_norms
from doratune.records.layout import checkpoints
from doratune.training._internals import SFTConfig, SFTTrainer, prepare_data_loader
from doratune.training.batches import RowBatches, with_blank
from doratune.training.callbacks import EpochCallback
from doratune.training.sharded import whole, whole_weights

logger = logging.getLogger(__name__)

SKIPS_IN_A_ROW = 10
"""So many steps skipped in a row are not the fault of a few rows."""
SMALLEST_SCALE = 1.0
"""Below this loss scale, it is not the scale that makes float16's gradients overflow."""


class RowTrainer(SFTTrainer):
    """Trains on ``input_ids`` and ``labels``; every optimizer step is logged.

    Args:
        model: The model, with an adapter or fully trained.
        args: The arguments; ``logging_steps`` must be 1.
        rows: The rows to train on.
        on_nonfinite: stop: raise at the first loss, gradient norm or parameter that is not finite; skip:
            skip an optimizer step whose loss or gradient is not finite.
        name_rows: Names rows, given as indices into ``rows``, for the user.
        loraplus_ratio: The learning rate of LoRA's B, relative to that of A (LoRA+); None: the same.
        **others: SFTTrainer's own arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        args: SFTConfig,
        rows: Dataset,
        *,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        name_rows: Callable[[list[int]], str] = str,
        loraplus_ratio: float | None = None,
        **others: Any,
    ) -> None:
        lengths = pyarrow.compute.call_function(
            "list_value_length", [rows.with_format("arrow")[:]["input_ids"]]
        ).to_pylist()
        self.batches = RowBatches(
            lengths,
            micro=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            process=args.process_index,
        )
        self._rows = rows
        if self.batches.has_blanks:
            rows = with_blank(rows, others["processing_class"].eos_token_id)
        masters = {name: one.data for name, one in model.named_parameters() if one.requires_grad}
        super().__init__(model=model, args=args, train_dataset=rows, **others)  # pyright: ignore[reportArgumentType]
        # TRL casts A and B on a quantised base to bfloat16, which rounds most small steps away.
        trained: Any = self.model
        for name, parameter in trained.named_parameters():
            if name in masters and parameter.dtype != masters[name].dtype:
                parameter.data = masters[name].to(parameter.device)
        self.add_callback(EpochCallback(self.batches))
        self._skips = on_nonfinite == "skip"
        self._name_rows = name_rows
        self._loraplus_ratio = loraplus_ratio
        self._in_a_row = 0
        self._left_out = False
        validation = others.get("eval_dataset")
        self._rows_per_token = 1.0 if validation is None else len(validation) / _answer_tokens(validation)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches of this process. accelerate would divide them among the processes once more."""
        columns: Any = self.train_dataset
        loader = DataLoader(
            columns.select_columns(["input_ids", "labels"]),
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's optimizer, or PEFT's with another learning rate for B."""
        if self._loraplus_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, trained)
        self.optimizer = create_loraplus_optimizer(
            trained,
            kind,
            loraplus_lr_ratio=self._loraplus_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **arguments,
        )
        rates = {group["lr"] for group in self.optimizer.param_groups if group["params"]}
        for fixed in rates - {arguments["lr"], arguments["lr"] * self._loraplus_ratio}:
            logger.warning(
                "LoRA+ as PEFT has it trains the adapter of an embedding at a rate of %g, whatever the "
                "learning rate of the run",
                fixed,
            )
        return self.optimizer

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradient that the optimizer is about to use."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self._skips and self.accelerator.scaler is None:
            self._left_out = not self._everywhere(self._tr_loss, norm)
            if self._left_out:
                # An optimizer changes neither a parameter without a gradient nor its state for it.
                model.zero_grad(set_to_none=True)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step, and stop if training cannot continue.

        Raises:
            DivergedError: Something is not finite, and the step that it spoils cannot be skipped.
        """
        problem = None
        if "loss" in logs:
            logs["row_tokens"] = self.batches.tokens(self.state.global_step - 1)
            problem = self._problem(logs)
            if self._left_out:
                logs["skipped"] = 1.0
                self._tr_loss.zero_()  # the Trainer subtracts a loss that is not finite from itself
                self._left_out = False
        elif not math.isfinite(logs.get("eval_loss", 0.0)):
            problem = "the validation loss is not finite"
        super().log(logs, start_time)
        if problem:
            self._stop(problem, logs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with a loss whose mean over the rows is the mean over all rows' tokens.

        The Trainer weighs every batch by its rows, so its mean would depend on the size of a batch.
        """
        labels = inputs["labels"]
        tokens = (labels[:, 1:] != IGNORED).sum()
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None:
            loss = loss * tokens / len(labels) * self._rows_per_token
        return (loss, *others)

    def check_final(self) -> None:
        """Check the model after the last optimizer step: DoRA's norms, and the loss of a few rows.

        Raises:
            DivergedError: One of them is not finite.
        """
        model: Any = self.model_wrapped
        model.eval()
        rows = range(min(self.args.per_device_train_batch_size, len(self.batches.lengths)))
        with hold_norms(model):  # under FSDP2 a norm can only be computed in the forward pass
            loss, _, _ = self.prediction_step(model, self._collated(rows), prediction_loss_only=True)
            norms = dora_norms(model)
        if loss is not None and not self._everywhere(loss):
            self._stop("the trained model's loss is not finite", {})
        # A layer's output divided by an infinite norm is zero, so the loss is finite.
        if norms and not self._everywhere(*norms.values()):
            self._stop("a DoRA norm of the trained model is not finite", {})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights as PEFT and transformers do, gathered first if the model is sharded."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        sharded: Any = self.model
        state = whole_weights(sharded)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def inputs(self, rows: Sequence[int]) -> dict[str, Any]:
        """The model's inputs for some rows, on its device."""
        return {name: one.to(self.args.device) for name, one in self._collated(rows).items()}

    def _collated(self, rows: Sequence[int]) -> dict[str, Any]:
        columns: Any = self._rows.select(rows).select_columns(["input_ids", "labels"])
        return self.data_collator(columns.to_list())

    def _problem(self, logs: Mapping[str, float]) -> str | None:
        """The problem that ends training at the logged step, or None; also notes a skipped step."""
        wrong = [
            what
            for what, name in (("the loss", "loss"), ("the gradient norm", "grad_norm"))
            if not math.isfinite(logs.get(name, 0.0))
        ]
        scaler = self.accelerator.scaler
        if wrong == ["the gradient norm"] and scaler is not None and scaler.get_scale() >= SMALLEST_SCALE:
            self._left_out = True  # the scaler skipped it, and tries a smaller scale
        elif wrong and not self._left_out:
            return f"{wrong[0]} is not finite"
        if not self._left_out:
            self._in_a_row = 0
            return (
                None
                if self._everywhere(self._parameter_norm())
                else "a parameter, or its square, is not finite"
            )
        self._in_a_row += 1
        logger.warning(
            "step %d is left out: %s is not finite (%s)",
            self.state.global_step,
            wrong[0],
            self._name_rows(self.batches.rows(self.state.global_step - 1)),
        )
        if scaler is None and self._in_a_row == SKIPS_IN_A_ROW:
            return f"{wrong[0]} was not finite in {SKIPS_IN_A_ROW} steps in a row"
        return None

    def _parameter_norm(self) -> Tensor:
        """The norm of the trained parameters: not finite either if a square overflows, as in DoRA's norm."""
        model: Any = self.model
        trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
        return torch.nn.utils.get_total_norm(trained)

    def _everywhere(self, *numbers: Any) -> bool:
        """Whether numbers are finite in every process."""
        finite = torch.stack(
            [
                whole(torch.as_tensor(one, device=self.args.device).detach()).isfinite().all()
                for one in numbers
            ]
        ).all()
        together: Any = self.accelerator.gather(finite[None]) if self.args.world_size > 1 else finite
        return bool(together.all())

    def _stop(self, problem: str, logs: Mapping[str, float]) -> None:
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        step, run = self.state.global_step, Path(str(self.args.output_dir)).parent
        last = list(checkpoints(run).values())[-1:]
        found = [f"{name} {logs[name]:g}" for name in ("loss", "grad_norm") if name in logs]
        rows = self._name_rows(self.batches.rows(step - 1))
        raise DivergedError(
            f"training stopped at step {step} of {self.state.max_steps}: {problem}",
            where=str(run),
            got="; ".join([*found, f"the step's rows: {rows}"]),
            fix="start again with a lower --learning-rate"
            + ("" if self._skips else ", or with --on-nonfinite skip if only some rows cause it")
            + (f"; the last good checkpoint is {last[0]}" if last else "; there is no checkpoint before it"),
        )


def _answer_tokens(rows: Any) -> int:
    """How many tokens of some rows have a loss; the first token of a row has none."""
    return max(1, sum(label != IGNORED for labels in rows["labels"] for label in labels[1:]))
