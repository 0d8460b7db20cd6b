"""The trainer of a run: what one step trains on, and where training ends."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from doratune.errors import DivergedError
from doratune.models.load import load_model
from doratune.records.layout import checkpoints
from doratune.training._internals import DEVICES_NAME, SFTConfig, SFTTrainer
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.config import TrainConfig
from doratune.training.train import build_trainer, use_one_device
from doratune.training.trainer import SKIPS_IN_A_ROW, RowTrainer

ROWS = 17
LAYER = "base_model.model.model.layers.1.self_attn.v_proj"


@pytest.fixture
def rows(tiny_model: Path) -> Dataset:
    """Rows of unlike length, each with a prompt without a loss."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    drawn = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, len(tokenizer), (6 + row,), generator=drawn).tolist() for row in range(ROWS)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "labels": [[-100] * 3 + one[3:] for one in ids],
            "example": list(range(ROWS)),
        }
    )


def made(model: Path, rows: Dataset, output: Path, **settings: Any) -> tuple[RowTrainer, MetricsCallback]:
    """The trainer of a run of two epochs, without dropout, and the run's metrics."""
    settings = {"batch_size": 16, "epochs": 2, "learning_rate": 1e-2, "warmup_steps": 0, **settings}
    config = TrainConfig(model=str(model), rank=4, dropout=0.0, dtype="float32", output=output, **settings)
    output.mkdir(exist_ok=True)
    metrics = MetricsCallback(output)
    trainer, _ = build_trainer(
        config, load_model(config.model, dtype="float32"), rows, metrics, StopCallback()
    )
    return trainer, metrics


def trained(trainer: RowTrainer) -> dict[str, torch.Tensor]:
    model: Any = trainer.model
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def lines(output: Path) -> list[dict[str, Any]]:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    text = (output / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_the_methods_that_are_overridden_are_there() -> None:
    assert all(hasattr(SFTTrainer, name) for name in ("get_train_dataloader", "_get_grad_norm"))


def test_one_process_uses_one_of_several_gpus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    setattr(args, DEVICES_NAME, 2)
    assert args.train_batch_size == 8, "transformers would train twice as many rows"
    with caplog.at_level(logging.INFO, logger="doratune"):
        use_one_device(args)
    assert args.train_batch_size == 4 and "torchrun --nproc-per-node 2" in caplog.text
    setattr(args, DEVICES_NAME, 2)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="doratune"):
        use_one_device(args, device_map="auto")
    assert args.train_batch_size == 4 and caplog.text == "", "a model spread over both uses both"


@pytest.mark.parametrize("engine", ["doratune", "peft"])
def test_a_short_last_batch_is_the_same_in_all_micro_batches(
    engine: str, tiny_model: Path, rows: Dataset, tmp_path: Path
) -> None:
    results = []
    for micro in (16, 4, 1):
        switch = "on" if engine == "doratune" else "off"
        output = tmp_path / str(micro)
        trainer, metrics = made(
            tiny_model, rows, output, micro_batch_size=micro, engine=engine, speedups=switch
        )
        trainer.train()
        assert trainer.state.global_step == 4
        steps = [line["tokens"] for line in lines(output)]
        lengths = [len(ids) for ids in rows["input_ids"]]
        assert steps[1] == sum(lengths) and steps[3] == 2 * steps[1] == metrics.tokens
        assert [steps[1] - steps[0]] == [lengths[row] for row in trainer.batches.rows(1)]
        results.append((trained(trainer), [line["loss"] for line in lines(output)]))
    (whole, losses), *others = results
    for split, split_losses in others:
        assert split_losses == pytest.approx(losses, rel=1e-5)
        for name, weight in whole.items():
            # Adam divides a gradient by its own size: where that is rounding, so is the step's direction.
            torch.testing.assert_close(split[name], weight, rtol=1e-3, atol=2e-4)


def test_the_last_loss_is_the_mean_over_its_own_tokens(
    tiny_model: Path, rows: Dataset, tmp_path: Path
) -> None:
    trainer, _ = made(tiny_model, rows, tmp_path / "run", micro_batch_size=1, epochs=1, learning_rate=1e-30)
    trainer.train()
    (row,) = trainer.batches.rows(1)
    model: Any = load_model(str(tiny_model), dtype="float32").model
    ids = torch.tensor([rows[row]["input_ids"]])
    with torch.no_grad():
        scores = model(ids).logits[0].double().log_softmax(-1)
    expected = -scores[2:-1].gather(1, ids[0, 3:, None]).mean()
    assert lines(tmp_path / "run")[1]["loss"] == pytest.approx(float(expected), rel=1e-5)


class Spoils:
    """Makes a number infinite in the steps that are named, from 1."""

    def __init__(self, trainer: RowTrainer, steps: set[int], what: str) -> None:
        model: Any = trainer.model
        self.parameter = next(one for name, one in model.named_parameters() if "lora_B" in name)
        self.steps, self.trainer = steps, trainer
        if what == "gradient":
            self.parameter.register_hook(self.spoil)
        elif what == "loss":
            compute, owner = trainer.compute_loss, trainer
            spoil = self.spoil
            owner.compute_loss = lambda *args, **more: spoil(compute(*args, **more))  # type: ignore[method-assign]

    def spoil(self, value: torch.Tensor) -> torch.Tensor:
        return value * math.nan if self.trainer.state.global_step + 1 in self.steps else value


@pytest.mark.parametrize("what", ["gradient", "loss"])
@pytest.mark.parametrize("micro", [16, 4])
def test_a_run_stops_at_what_is_not_finite(
    what: str, micro: int, tiny_model: Path, rows: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trainer, _ = made(tiny_model, rows, run, save_steps=1, micro_batch_size=micro)
    Spoils(trainer, {3}, what)
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    message = caught.value.message
    assert "training stopped at step 3 of 4" in message and f"{run}/checkpoints/checkpoint-2" in message
    named = "the gradient norm" if what == "gradient" else "the loss"
    assert f"{named} is not finite" in message and str(trainer.batches.rows(2)) in message
    assert list(checkpoints(run)) == [1, 2]
    last = lines(run)[-1]
    assert last["step"] == 3 and None in (last["loss"], last["grad_norm"])


def test_a_parameter_that_is_not_finite_stops_a_run_before_it_is_saved(
    tiny_model: Path, rows: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trainer, _ = made(tiny_model, rows, run, save_steps=1, learning_rate=1e20)
    with pytest.raises(DivergedError, match="step 1 of 4: a parameter, or its square, is not finite"):
        trainer.train()
    assert not checkpoints(run)


@pytest.mark.parametrize("engine", ["doratune", "peft"])
def test_a_norm_that_overflows_is_noticed(
    engine: str, tiny_model: Path, rows: Dataset, tmp_path: Path
) -> None:
    """The layer's output is zero then, its weights and the loss are finite."""
    trainer, _ = made(tiny_model, rows, tmp_path / "run", method="dora", engine=engine)
    trainer.check_final()
    model: Any = trainer.model
    with torch.no_grad():
        model.get_parameter(LAYER + ".lora_B.default.weight").fill_(1e25)
    with pytest.raises(DivergedError, match="a DoRA norm of the trained model is not finite"):
        trainer.check_final()


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_spoiled_last_step_is_noticed(method: str, tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    trainer, _ = made(tiny_model, rows, tmp_path / "run", steps=1, learning_rate=1e18, method=method)
    with pytest.raises(DivergedError, match="is not finite"):
        trainer.train()
        trainer.check_final()


@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_a_skipped_step_changes_nothing(
    what: str,
    tiny_model: Path,
    rows: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer, metrics = made(
        tiny_model, rows, tmp_path / "run", on_nonfinite="skip", micro_batch_size=4, weight_decay=0.1
    )
    Spoils(trainer, {2, 3}, what)
    before: list[dict[str, torch.Tensor]] = []
    log = trainer.log

    def look(*args: Any) -> None:
        before.append(trained(trainer))
        log(*args)

    trainer.log = look  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="doratune"):
        trainer.train()
    first, second, third, fourth = before[:4]
    assert all(first[name].equal(second[name]) and first[name].equal(third[name]) for name in first)
    assert any(not third[name].equal(fourth[name]) for name in first)
    assert trainer.optimizer is not None
    steps = {float(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {2.0}, "of the optimizer's own"
    assert metrics.skipped == 2 and ["skipped" in line for line in lines(tmp_path / "run")] == [
        *(False, True, True, False)
    ]
    assert lines(tmp_path / "run")[3]["loss"] is not None
    assert "step 2 is left out" in caplog.text and str(trainer.batches.rows(1)) in caplog.text


def test_skipping_ends_where_every_step_would_be_skipped(
    tiny_model: Path, rows: Dataset, tmp_path: Path
) -> None:
    trainer, _ = made(tiny_model, rows, tmp_path / "run", on_nonfinite="skip", epochs=20)
    Spoils(trainer, set(range(3, 41)), "loss")
    with pytest.raises(
        DivergedError, match=f"at step {SKIPS_IN_A_ROW + 2} of 40: .* in {SKIPS_IN_A_ROW} steps"
    ) as caught:
        trainer.train()
    assert caught.value.fix is not None and "skip" not in caught.value.fix, "it was asked for already"


def test_the_loss_scale_of_float16_is_given_time(tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    """Its scaler leaves out steps by itself until the gradients fit: those are counted, and are no end."""
    trainer, metrics = made(tiny_model, rows, tmp_path / "run")
    trainer.train()
    overflow = {"loss": 1.0, "grad_norm": math.inf}
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.accelerator.scaler.scale(torch.ones(1))
    trainer.log(dict(overflow))
    assert metrics.skipped == 1
    with pytest.raises(DivergedError, match="the loss is not finite"):
        trainer.log({"loss": math.nan, "grad_norm": math.nan})
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    trainer.accelerator.scaler.scale(torch.ones(1))
    with pytest.raises(DivergedError, match="the gradient norm is not finite"):
        trainer.log(dict(overflow))


def test_the_validation_loss_is_the_mean_over_all_tokens_whatever_the_batch(
    tiny_model: Path, rows: Dataset, tmp_path: Path
) -> None:
    losses = []
    for micro in (1, 4, 16):
        trainer, _ = made(
            tiny_model, rows, tmp_path / str(micro), micro_batch_size=micro, validation_share=0.4
        )
        losses.append(trainer.evaluate()["eval_loss"])
    model: Any = load_model(str(tiny_model), dtype="float32").model
    sums, tokens = 0.0, 0
    for row in cast(Any, trainer.eval_dataset):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].double().log_softmax(-1)
        kept = labels[1:] != -100
        sums -= float(scores[kept].gather(1, labels[1:][kept, None]).sum())
        tokens += int(kept.sum())
    assert losses == pytest.approx([sums / tokens] * 3, rel=1e-5)
