from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench_support import QUICK, small_case, small_file
from rich.console import Console

from doratune.bench.machine import describe_machine
from doratune.bench.op import bench as op
from doratune.bench.op.cases import CaseEntry, CaseFile
from doratune.bench.op.providers import PROVIDERS, Provider
from doratune.bench.table import bench_renderable
from doratune.errors import InputError
from doratune.records.bench import BenchRecord, PeakMemory


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small cases, and peaks that are made up: a process for each takes seconds."""
    monkeypatch.setattr(op, "read_cases", small_file)

    def peak(provider: Provider, *_: object) -> PeakMemory:
        return PeakMemory(before_bytes=1000, growth_bytes=10 * (1 + PROVIDERS.index(provider)))

    monkeypatch.setattr(op, "cpu_peak", peak)


def bench(**changes: object) -> BenchRecord:
    return op.bench_op(QUICK.model_copy(update={"case_set": "cpu", "memory": True, **changes}))


def shown(record: BenchRecord) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(bench_renderable(record))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_file_round_trip(small: None, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    record = bench(output=path)
    text = path.read_text(encoding="utf-8")
    assert BenchRecord.model_validate_json(text, strict=True) == record
    written = json.loads(text)
    assert (written["schema"], written["schema_version"], written["what"]) == ("doratune.bench", 1, "op")
    assert '"/' not in text  # no path of this machine
    with pytest.raises(ValueError, match="schema_version"):
        BenchRecord.model_validate({**written, "schema_version": 2})


def test_an_existing_file_is_kept_unless_said_otherwise(small: None, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("precious")
    config = QUICK.model_copy(update={"case_set": "cpu", "output": path})
    with pytest.raises(InputError, match="--overwrite"):
        op.bench_op(config)
    assert path.read_text() == "precious"
    op.bench_op(config, overwrite=True)
    assert json.loads(path.read_text())["case_set"] == "cpu"
    with pytest.raises(InputError, match="is a folder"):
        op.bench_op(QUICK.model_copy(update={"case_set": "cpu", "output": tmp_path}))


def test_record_holds_every_provider_and_verdict(small: None) -> None:
    record = bench()
    assert [result.case.name for result in record.results] == ["small", "small-bfloat16"]
    for result in record.results:
        named = [one.provider for one in result.providers] + [one.provider for one in result.unavailable]
        assert sorted(named) == sorted(provider.name for provider in PROVIDERS)
        found = {(one.quantity, one.against): one.met for one in result.verdicts}
        assert found == {
            ("time", "peft-lora"): False,
            ("saved", "peft-dora"): True,
            ("peak", "peft-dora"): True,
        }
        lora = next(one for one in result.providers if one.provider == "peft-lora")
        assert lora.ratios["time"]["peft-lora"] == lora.ratios["saved"]["peft-lora"] == 1.0
        assert lora.ratios["peak"]["floor"] == 2.0
        assert "floor" not in lora.ratios["saved"]  # the floor saves nothing
        assert lora.milliseconds.count == 2 and lora.adapter_dtype == result.case.dtype


def test_no_memory_is_measured_unless_requested(small: None) -> None:
    result = bench(memory=False).results[0]
    assert all(one.saved_bytes is None and one.peak is None for one in result.providers)
    assert {one.quantity: one.met for one in result.verdicts}["saved"] is None


def test_cases_in_one_dtype_are_measured_once(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        CaseEntry(**small_case(name=name, dtype=dtype).model_dump(), targets={"peft-lora": target})
        for name, dtype, target in (("one", "bfloat16", 8.0), ("one-fp32", "float32", 9.0))
    ]
    file = CaseFile(timed_for=["doratune-dora"], every_case=[], cpu=entries, gpu=[])
    monkeypatch.setattr(op, "read_cases", lambda: file)
    (result,) = bench(dtype="float32", memory=False).results
    assert (result.case.name, result.case.dtype) == ("one-fp32", "float32")
    assert [one.at_most for one in result.verdicts] == [9.0]
    assert all(one.adapter_dtype in ("float32", None) for one in result.providers)
    (result,) = bench(dtype="float32", case=["one"], memory=False).results
    assert (result.case.name, result.case.dtype) == ("one-fp32", "float32")


@pytest.mark.parametrize(("dtype", "warnings"), [("bfloat16", 1), ("float32", 0)])
def test_slow_products_are_announced(
    dtype: str,
    warnings: int,
    small: None,
    processor: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    processor("Intel Ice Lake")
    bench(dtype=dtype, memory=False)
    assert caplog.text.count("no fast products of bfloat16") == warnings
    caplog.clear()
    processor("Intel Sapphire Rapids")
    bench(dtype=dtype, memory=False)
    assert "no fast products" not in caplog.text


def test_threads_are_set_recorded_and_set_back(small: None) -> None:
    before = torch.get_num_threads()
    record = bench(threads=before + 1, memory=False)
    assert record.machine.threads == before + 1
    assert torch.get_num_threads() == before


def test_a_provider_that_cannot_run_is_recorded_with_its_reason(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: object) -> None:
        raise InputError("not today", where="doratune.enable")

    monkeypatch.setattr("doratune.bench.op.providers.enable", refuse)
    record = bench(memory=False)
    left = {one.provider: one.reason for one in record.results[0].unavailable}
    assert left == {provider.name: "doratune.enable: not today" for provider in PROVIDERS if provider.engine}
    text = shown(record)
    for name in left:
        assert f" {name} " in text
    flat = " ".join(text.split())
    assert "doratune-dora is not available (doratune.enable: not today): small, small-bfloat16" in flat
    assert "targets: 0 of 6 met, 0 not met, 6 not measured." in flat


def test_table_fits_eighty_columns_and_marks_targets(small: None) -> None:
    text = shown(bench())
    assert max(len(line) for line in text.splitlines()) <= 80
    for provider in PROVIDERS:
        assert f" {provider.name} " in text
    assert "≤0.00✗" in text and "≤9.00✓" in text
    assert "targets: 4 of 6 met, 2 not met." in text


def test_machine_names_preloaded_libraries_without_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/x/libjemalloc.so.2:/opt/libother.so")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "2000000000")
    machine = describe_machine(torch.device("cpu"))
    assert machine.allocator["LD_PRELOAD"] == "libjemalloc.so.2 libother.so"
    assert machine.allocator["MALLOC_TRIM_THRESHOLD_"] == "2000000000"
    assert machine.threads == torch.get_num_threads()


def test_table_of_a_gpu_tells_its_own_time_apart(small: None) -> None:
    record = bench()
    for result in record.results:
        for one in result.providers:
            one.ratios["gpu"] = {"floor": 1.25, "peft-lora": 0.75}
    text = shown(record.model_copy(update={"case_set": "gpu"}))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert " 1.25 " in text and " 0.75 " in text and "from calls queued" in text
