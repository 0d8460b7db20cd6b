from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from doratune.bench.config import StepBenchConfig
from doratune.bench.figures import GateError
from doratune.bench.step import bench as step
from doratune.bench.step.cases import StepEntry, StepFile, read_steps
from doratune.bench.step.gate import FIRST_LIMITS, LIMITS, check_losses
from doratune.bench.step.inputs import draw_rows, random_model
from doratune.bench.step.loops import FrozenStep, doratune_trainer, run, stock_trainer
from doratune.bench.step.providers import (
    ALIKE,
    ONE_LINE,
    STEP_PROVIDERS,
    Frozen,
    StepReport,
    Stock,
    Trainee,
)
from doratune.bench.step.turns import Alone, Step, TurnsOverError
from doratune.bench.table import step_renderable
from doratune.errors import DoratuneError, InputError
from doratune.peft.linear import EngineLinear
from doratune.records.bench import StepBenchRecord, StepCase

NAMES = [provider.name for provider in STEP_PROVIDERS]
MILLISECONDS = {"floor-eager": 2.0, "floor-sdpa": 1.0, "peft-lora": 4.0, "peft-dora": 8.0}
CONFIG = StepBenchConfig(model="some-model", rounds=3)


def small_case(**changes: Any) -> StepCase:
    values = {"name": "small", "rows": 2, "tokens": 16, "answer_tokens": 3, "loss_on": "answer"}
    return StepCase(**{**values, "rank": 4, "alpha": 8, "dtype": "float32", **changes})


def small_file() -> StepFile:
    limits = {"time": {"floor": 3.5, "peft-lora": 0.5}, "peak": {"peft-dora": 0.7}}
    headline = StepEntry.model_validate({**small_case(dtype="bfloat16").model_dump(), "targets": limits})
    growth = StepEntry.model_validate({**small_case(name="grown").model_dump(), "targets": {}})
    large = StepEntry.model_validate({**small_case(name="large").model_dump(), "targets": {}})
    return StepFile(targets_for="doratune-dora", headline=[headline], growth=[growth], gpu=[large])


class Stage:
    """Stands for processes: times, losses and memory are made up.

    Attributes:
        works: What the processes would have trained, each time that some were started.
        wrong: A provider and the round in which its loss is off.
    """

    def __init__(self) -> None:
        self.works: list[list[Trainee]] = []
        self.wrong: tuple[str, int] | None = None

    @contextmanager
    def workers(self, works: Mapping[str, partial[StepReport]]) -> Iterator[Stage]:
        self.works.append([work.args[0] for work in works.values()])
        yield self

    def round(self, number: int) -> dict[str, Step]:
        slow = 10.0 if number in (0, 1, 3) else 1.0  # both rounds of the warm-up, and one that counts
        return {
            name: Step(
                slow * MILLISECONDS.get(name, 3.0), 5.0 - number + 0.5 * ((name, number) == self.wrong)
            )
            for name in NAMES
        }

    def finish(self) -> dict[str, StepReport]:
        return {name: StepReport("sdpa", 7, 100, 1000 * (1 + NAMES.index(name))) for name in NAMES}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(step, "workers", stage.workers)
    monkeypatch.setattr(step, "read_steps", small_file)
    return stage


def test_record_of_known_times_and_memory(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    record = step.bench_step(CONFIG.model_copy(update={"output": path}))
    (result,) = record.results
    assert result.floor == "floor-sdpa"
    of = {one.provider: one for one in result.providers}
    assert list(of) == NAMES
    ours = of["doratune-dora"]
    assert ours.milliseconds.rounds == [3.0, 30.0, 3.0]  # the rounds for warming up do not count
    assert ours.losses == [5.0, 4.0, 3.0, 2.0, 1.0]  # but their losses are there
    assert ours.ratios["time"] == {"floor": 3.0, "peft-lora": 0.75, "peft-dora": 0.375}
    assert ours.ratios["peak"] == {"floor": 3.0, "peft-lora": 2.0, "peft-dora": 1.5}
    assert ours.ratios["growth"]["peft-lora"] == 5900 / 2900
    verdicts = {(one.quantity, one.against): one.met for one in result.verdicts}
    assert verdicts == {("time", "floor"): True, ("time", "peft-lora"): False, ("peak", "peft-dora"): False}
    assert StepBenchRecord.model_validate_json(path.read_text(), strict=True) == record
    assert json.loads(path.read_text())["what"] == "step"
    with pytest.raises(InputError, match="--overwrite"):
        step.bench_step(CONFIG.model_copy(update={"output": path}))


def test_a_case_is_rehearsed_in_float32_before_it_is_timed(stage: Stage) -> None:
    step.bench_step(CONFIG.model_copy(update={"threads": 3}))
    rehearsed, timed = stage.works
    assert {work.case.dtype for work in rehearsed} == {"float32"}
    assert {work.case.dtype for work in timed} == {"bfloat16"}
    assert {(work.model, work.threads) for work in rehearsed + timed} == {("some-model", 3)}
    assert {work.steps for work in timed} == {2 + 3 + 1}  # the last of them is never taken


def test_every_case_in_another_dtype(stage: Stage) -> None:
    record = step.bench_step(CONFIG.model_copy(update={"dtype": "float32"}))
    assert [(one.case.name, one.case.dtype) for one in record.results] == [("small-fp32", "float32")]
    assert {work.case.dtype for works in stage.works for work in works} == {"float32"}
    assert record.results[0].verdicts  # its targets


def test_table_fits_eighty_columns_and_marks_targets(stage: Stage) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(step_renderable(step.bench_step(CONFIG)))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert max(len(line) for line in text.splitlines()) <= 80
    for name in NAMES:
        assert f" {name} " in text
    assert "≤3.50✓" in text and "≤0.50✗" in text
    assert "targets: 1 of 3 met, 2 not met." in text


@pytest.mark.parametrize(("number", "started"), [(2, 1), (4, 2)], ids=["float32", "bfloat16"])
def test_a_wrong_loss_gives_no_figures(stage: Stage, tmp_path: Path, number: int, started: int) -> None:
    stage.wrong = ("doratune-dora", number)
    path = tmp_path / "step.json"
    with pytest.raises(GateError, match=f"step {number + 1} of doratune-dora and peft-dora"):
        step.bench_step(CONFIG.model_copy(update={"output": path}))
    assert len(stage.works) == started and not path.exists()


def test_limits_of_losses() -> None:
    good = {name: [10.0, 9.0] for name in NAMES}
    for dtype in ("bfloat16", "float32"):
        first, later = FIRST_LIMITS[dtype], LIMITS[dtype]
        check_losses({**good, "floor-eager": [10.0 * (1 + 0.9 * first), 1.0]}, dtype)
        check_losses({**good, "doratune-lora": [10.0, 9.0 * (1 - 0.9 * later)]}, dtype)
        with pytest.raises(GateError, match="step 1 of floor-eager"):
            check_losses({**good, "floor-eager": [10.0 * (1 + 1.1 * first), 9.0]}, dtype)
        with pytest.raises(GateError, match="step 2 of doratune-lora and peft-lora"):
            check_losses({**good, "doratune-lora": [10.0, 9.0 * (1 - 1.1 * later)]}, dtype)
        with pytest.raises(GateError, match="losses of nan"):
            check_losses({**good, "peft-dora": [float("nan"), 9.0]}, dtype)


def test_shipped_cases_are_named_for_what_they_are_and_have_targets_in_the_headline() -> None:
    file = read_steps()
    for entry in file.select("all", []):
        suffix = "" if entry.loss_on == "answer" else "-all"
        assert entry.name == f"{entry.rows}x{entry.tokens}-r{entry.rank}{suffix}"
        assert (entry.alpha, entry.dtype, entry.answer_tokens) == (2 * entry.rank, "bfloat16", 8)
        for target in file.targets(entry):
            assert target.provider in NAMES and target.against in {"floor", *NAMES}
    for entry in file.select(None, []):
        found = {(one.quantity, one.against): one.at_most for one in file.targets(entry)}
        assert found == {
            ("time", "floor"): 1.35,
            ("time", "peft-lora"): 0.75,
            ("time", "peft-dora"): 0.50,
            ("peak", "peft-lora"): 0.95,
            ("peak", "peft-dora"): 0.70,
        }


def test_selection() -> None:
    file = small_file()

    def names(*arguments: Any) -> list[str]:
        return [entry.name for entry in file.select(*arguments)]

    assert names(None, []) == ["small"]
    assert names("growth", []) == ["grown"]
    assert names("all", []) == ["small", "grown"]
    assert names(None, ["grown"]) == ["grown"]
    with pytest.raises(InputError, match="add --set all"):
        file.select("headline", ["grown"])
    with pytest.raises(InputError, match="did you mean grown"):
        file.select(None, ["grow"])


def test_rows_are_the_same_each_time_and_trained_on_where_the_case_says() -> None:
    rows, again = draw_rows(small_case(), 50), draw_rows(small_case(loss_on="prompt-and-answer"), 50)
    assert rows["input_ids"][:] == again["input_ids"][:] == again["labels"][:]
    assert len(rows) == 2 and max(map(max, rows["input_ids"])) < 50
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        assert labels == [-100] * 13 + ids[-3:]


@pytest.mark.parametrize("loss_on", ["answer", "prompt-and-answer"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_floor_is_the_models_own_loss_and_trains_nothing(
    tiny_model: Path, loss_on: str, attention: str
) -> None:
    case = small_case(loss_on=loss_on)
    frozen = FrozenStep(Frozen("floor", attention), str(tiny_model), case)
    loss = frozen()
    model: Any = frozen.model
    assert model.config._attn_implementation == attention
    assert all(one.grad is None and not one.requires_grad for one in model.parameters())
    rows = draw_rows(case, model.config.vocab_size).with_format("torch")[:]
    torch.testing.assert_close(loss, model(**rows).loss.item())


@pytest.mark.parametrize("provider", [one for one in ONE_LINE if one.enabled], ids=lambda one: one.name)
def test_one_line_puts_a_stock_trainer_on_the_engine_and_changes_no_loss(
    provider: Stock, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_engine: list[int] = []
    forward = EngineLinear.forward

    def counted(self: EngineLinear, *args: Any) -> Any:
        by_engine.append(1)
        return forward(self, *args)

    monkeypatch.setattr(EngineLinear, "forward", counted)
    stock = Stock(ALIKE[provider.name], provider.method)
    losses = []
    for one in (provider, stock):
        turns = Alone(3)
        by_engine.clear()
        report = run(Trainee(one, small_case(), str(tiny_model), 4, torch.get_num_threads()), turns)
        losses.append([step.outcome for step in turns.steps])
        assert bool(by_engine) == one.enabled and report.trainable > 0
    assert losses[0] == pytest.approx(losses[1], rel=LIMITS["float32"])
    assert len(losses[0]) == 3


def test_trainers_differ_in_who_computes_and_in_nothing_that_is_learned(
    tiny_model: Path, tmp_path: Path
) -> None:
    work = Trainee(STEP_PROVIDERS[-1], small_case(), str(tiny_model), steps=3, threads=1)
    stock: Any = stock_trainer(work, "dora", tmp_path / "stock")
    ours: Any = doratune_trainer(work, "dora", tmp_path / "ours")
    on_engine = [any(isinstance(one, EngineLinear) for one in it.model.modules()) for it in (stock, ours)]
    assert on_engine == [False, True]
    replaced = {type(one).__name__ for one in ours.model.modules() if "forward" in vars(one)}
    assert {"LlamaRMSNorm", "LlamaAttention"} <= replaced
    for name in (
        *("learning_rate", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim"),
        *("max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "seed", "gradient_checkpointing"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "logging_steps", "loss_type"),
    ):
        assert getattr(stock.args, name) == getattr(ours.args, name), name
    mine = dict(ours.model.named_parameters())
    for name, parameter in stock.model.named_parameters():
        torch.testing.assert_close(mine[name], parameter, rtol=0, atol=0)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "read_steps", small_file)
    monkeypatch.setattr(step, "matmul_tflops", lambda device: 9.0)
    for name in ("is_available", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr("doratune.environment._gpu_name", lambda: "a GPU")


def test_nothing_is_measured_if_the_frozen_model_does_not_fit(
    pretended_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(trainee: Trainee, turn: Any) -> StepReport:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step, "train", train)
    with pytest.raises(DoratuneError, match="frozen model alone does not fit"):
        step.bench_step(CONFIG.model_copy(update={"step_set": "gpu"}))


def test_a_gpu_holds_one_provider_at_a_time(pretended_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs out of memory is reported, and the others are measured all the same."""
    alive: list[str] = []

    def train(trainee: Trainee, turn: Any) -> StepReport:
        name = trainee.provider.name
        alive.append(name)
        if name == "peft-dora":
            raise torch.OutOfMemoryError
        with suppress(TurnsOverError):
            loss = None
            for number in count():
                turn.wait(loss)
                loss = 5.0 - number
        return StepReport("sdpa", 7, 100, 1000)

    monkeypatch.setattr(step, "train", train)
    record = step.bench_step(CONFIG.model_copy(update={"step_set": "gpu"}))
    assert (record.interleaved, record.matmul_tflops) == (False, 9.0)
    (result,) = record.results
    assert alive == NAMES
    assert [one.provider for one in result.providers] == [name for name in NAMES if name != "peft-dora"]
    assert [(one.provider, one.reason) for one in result.unavailable] == [("peft-dora", "out of GPU memory")]
    ours = result.providers[-1]
    assert ours.losses == [5.0, 4.0, 3.0, 2.0, 1.0] and set(ours.ratios["time"]) == {"floor", "peft-lora"}
    console = Console(file=io.StringIO(), width=80)
    console.print(step_renderable(record))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "peft-dora is not available (out of GPU memory): large" in text


def test_the_set_for_a_gpu_needs_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU"):
        step.bench_step(CONFIG.model_copy(update={"step_set": "gpu", "output": tmp_path / "step.json"}))
    with pytest.raises(InputError, match="--set gpu"):
        step.bench_step(StepBenchConfig(case=["16x512-r32"]))


def test_random_weights_are_the_same_in_every_run_and_have_the_requested_dtype() -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, **heads)
    first, second = (random_model(config, torch.device("cpu"), torch.bfloat16) for _ in range(2))
    assert {one.dtype for one in first.model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.tokenizer.pad_token_id == first.model.config.pad_token_id == 0


def test_random_llama_has_the_sizes_of_llama_7b() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    assert model.num_parameters() == 6_738_415_616
