"""The engine under FSDP2 and FSDP1: on every layer or told why not, with stock PEFT's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from quick_start import start
from sharded_cases import LINEAR, ROWS, STEPS, Case, Result, built, name, rows, run_all, train

import doratune
import doratune.peft

LOSS, PARAMETER = 2e-6, 1e-5
"""Absolute tolerances in float32; AdamW makes a rounding of a small gradient one of the parameter."""
BFLOAT16 = 5e-3
"""Of losses near 4, after a few roundings to 8 bits."""
LARGE = 10
"""Of 14 layers, keys and values have few elements: they need no norm from the cache."""
PLAIN = [
    Case(),
    Case(use_dora=False),
    Case(wrap="layers"),
    Case(wrap="leaves"),
    Case(wrap="leaves", use_dora=False),
    Case(wrap="transformer", reshard=False, checkpointing=True),
    Case(wrap="leaves", reshard=False, checkpointing=True, hold=True),
    Case(wrap="blocks", hold=True),
    Case(wrap="peft"),
    Case(wrap="transformer", speedups="before"),
    Case(wrap="blocks", speedups="after"),
]
OTHERS = [Case(bfloat16=True), Case(wrap="transformer", targets=("q_proj", "embed_tokens", "lm_head"))]


def on(case: Case, engine: str) -> Case:
    return Case(**{**vars(case), "engine": engine})


def finished(folder: Path, processes: int, cases: Sequence[Case]) -> dict[Case, Result]:
    """The results of cases in a group of processes."""
    logs = [folder / f"log{rank}" for rank in range(processes)]
    started = [
        start(run_all, cases, folder, rank, processes, out=log, err=log) for rank, log in enumerate(logs)
    ]
    try:
        for one in started:
            one.join(500)
        codes = [one.exitcode for one in started]
    finally:
        for one in started:
            one.kill()
    log = logs[0].read_text()
    assert codes == [0] * processes, log
    results = torch.load(folder / "results.pt", weights_only=False)
    assert [result.error for result in results.values()] == [None] * len(cases), log
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[Case, Result]:
    """Two processes' results; stock PEFT's only where no other case has the same."""
    cases = [on(case, engine) for case in PLAIN for engine in ("before", "after")]
    cases += [
        on(case, engine) for case in (Case(), Case(use_dora=False), *OTHERS) for engine in ("never", "before")
    ]
    cases += [Case("after", wrap="transformer", targets=OTHERS[1].targets)]
    cases += [Case(engine, wrap="fsdp1") for engine in ("before", "after")]
    return finished(folder, 2, list(dict.fromkeys(cases)))


@pytest.fixture(scope="module")
def one() -> dict[bool, tuple[list[float], dict[str, torch.Tensor]]]:
    """Stock PEFT's losses and adapter in one process, for DoRA and for LoRA."""
    results = {}
    for use_dora in (True, False):
        model = built(Case(use_dora=use_dora))
        losses = [loss for loss, _ in train(model, Case(), slice(ROWS))]
        ids = rows(STEPS)[:1]
        losses.append(model(input_ids=ids, labels=ids).loss.item())
        results[use_dora] = (
            losses,
            {key: value for key, value in model.state_dict().items() if "lora_" in key},
        )
    return results


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value.detach(), rtol=0, atol=PARAMETER)


@pytest.mark.parametrize("engine", ["before", "after"])
@pytest.mark.parametrize("case", PLAIN, ids=name)
def test_every_layer_is_on_the_engine_and_right(case: Case, engine: str, two: Any, one: Any) -> None:
    """Losses and adapter are those of stock PEFT, sharded in the same way and in one process."""
    result = two[on(case, engine)]
    assert result.calls == "14 of 14 LoRA and DoRA layers ran on the engine in the first forward pass"
    losses, adapter = one[case.use_dora]
    assert result.losses == pytest.approx(losses, abs=LOSS)
    close(result.adapter, adapter)
    stock = two[Case(use_dora=case.use_dora)]
    assert result.losses == pytest.approx(stock.losses, abs=LOSS)
    close(result.adapter, stock.adapter)


@pytest.mark.parametrize("engine", ["before", "after"])
@pytest.mark.parametrize("case", PLAIN, ids=name)
def test_one_norm_per_layer_and_step_and_nothing_is_gathered_for_it(
    case: Case, engine: str, two: Any
) -> None:
    """``hold_norms`` and ``dora_norms`` send nothing while weights are sharded; recomputing adds no norm."""
    result = two[on(case, engine)]
    assert result.norms == [LARGE if case.use_dora else 0] * STEPS
    assert result.collectives == 0
    leaves = 45 - 14 * (not case.use_dora)
    # Under FSDP2 accelerate ignores PEFT's policy, except for the embedding and the head.
    units = {"blocks": 3, "layers": 17, "leaves": leaves, "transformer": 5, "peft": 3}
    assert result.units == units[case.wrap]


@pytest.mark.parametrize("case", [case for case in PLAIN if case.hold], ids=name)
def test_held_norms_are_at_hand_after_a_forward_pass(case: Case, two: Any) -> None:
    """Of layers that are not small."""
    held, right = two[on(case, "before")].held, doratune.peft.dora_norms(built(Case()))
    assert len(held) == LARGE
    for layer, norm in held.items():
        torch.testing.assert_close(norm, right[layer])


def test_speedups_that_need_whole_weights_leave_themselves_out(two: Any) -> None:
    """A loss and an adapter that are right are shown above."""
    before, after = (
        two[Case("before", wrap, speedups=when)].speedups
        for wrap, when in (("transformer", "before"), ("blocks", "after"))
    )
    head = "supervised_forward 0, 1 left (its weights are sharded, and it reads the head's outside a call)"
    assert head in before
    assert head in after
    assert "rms_norm 5;" in before
    assert "rms_norm 0, 5 left (its weight is sharded);" in after
    for report in (before, after):
        assert "rotary 2" in report
        assert "kept_outputs 1" in report


@pytest.mark.parametrize("engine", ["before", "after"])
@pytest.mark.parametrize("case", PLAIN, ids=name)
def test_the_class_that_fsdp_gave_a_layer_stays(case: Case, engine: str, two: Any) -> None:
    enabled, disabled = two[on(case, engine)].classes
    unit = "FSDP" if case.wrap == "layers" else ""
    assert (enabled, disabled) == (Counter({f"{unit}EngineLinear": 14}), Counter({f"{unit}Linear": 14}))


def test_mixed_precision(two: Any) -> None:
    result, stock = (two[on(OTHERS[0], engine)] for engine in ("before", "never"))
    assert result.calls.startswith("14 of 14 ")
    assert result.losses == pytest.approx(stock.losses, abs=BFLOAT16)


@pytest.mark.parametrize("engine", ["before", "after"])
def test_embedding_and_head_as_units(engine: str, two: Any) -> None:
    """accelerate makes units of both, by their LoRA layers."""
    result, stock = (two[on(OTHERS[1], one)] for one in (engine, "never"))
    assert result.calls.startswith("4 of 4 ")
    assert result.losses == pytest.approx(stock.losses, abs=LOSS)
    close(result.adapter, stock.adapter)
    assert result.classes[1] == stock.classes[1]


def test_fsdp1_stays_on_pefts_path_and_says_so(two: Any, one: Any) -> None:
    """Enabled after sharding, no layer is on the engine, which ``enable`` has said."""
    before, after = (two[Case(engine, wrap="fsdp1")] for engine in ("before", "after"))
    assert before.calls == (
        "0 of 14 LoRA and DoRA layers ran on the engine in the first forward pass; "
        "14 on PEFT's path: base weight is part of a trained tensor"
    )
    assert after.calls is None
    assert after.classes[0] == Counter({"Linear": 14})
    assert before.losses == pytest.approx(one[True][0], abs=LOSS)
    assert after.losses == pytest.approx(one[True][0], abs=LOSS)


@pytest.mark.parametrize("wrap", ["blocks", "leaves"])
def test_a_checkpoint_loads_in_one_process(wrap: str, folder: Path, two: Any) -> None:
    case = Case("before", wrap)
    model = PeftModel.from_pretrained(built(case).unload(), folder / name(case))
    ids = rows(STEPS)[:1]
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(two[case].losses[-1], abs=LOSS)
    assert doratune.enable(model).taken == {"Linear": len(LINEAR) * 2}
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(two[case].losses[-1], abs=LOSS)


@pytest.mark.slow
def test_deepspeed(tmp_path: Path, one: Any) -> None:
    """ZeRO-2 leaves weights whole. ZeRO-3 gathers each for the calls of its module, which is left to PEFT."""
    pytest.importorskip("deepspeed")
    cases = [Case("before", wrap) for wrap in ("zero2", "zero3")]
    two, three = finished(tmp_path, 2, cases).values()
    assert two.calls == "14 of 14 LoRA and DoRA layers ran on the engine in the first forward pass"
    assert str(three.calls).startswith("0 of 14 ")
    assert str(three.calls).endswith("hooks on the layer's parts (DeepSpeed ZeRO-3)")
    for result in (two, three):
        assert result.losses == pytest.approx(one[True][0], abs=LOSS)


@pytest.mark.slow
def test_four_processes(tmp_path: Path) -> None:
    """Some ways of sharding, each compared with stock PEFT sharded in the same way."""
    plain = [Case(), Case(wrap="leaves", hold=True), Case(wrap="transformer", reshard=False)]
    cases = [on(case, engine) for case in plain for engine in ("never", "before")]
    results = finished(tmp_path, 4, cases)
    for case in cases:
        if case.engine == "never":
            continue
        result, stock = results[case], results[on(case, "never")]
        assert " on PEFT's path" not in str(result.calls), case
        assert result.losses == pytest.approx(stock.losses, abs=BFLOAT16 if case.bfloat16 else LOSS), case
        if not case.bfloat16:
            close(result.adapter, stock.adapter)
