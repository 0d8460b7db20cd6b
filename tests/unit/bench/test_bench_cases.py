from __future__ import annotations

import pytest
from bench_support import small_file

from doratune.bench.cases import in_dtype
from doratune.bench.op.cases import SETS, read_cases, select_cases
from doratune.bench.op.providers import PROVIDERS
from doratune.errors import InputError

NAMES = {provider.name for provider in PROVIDERS}


def test_shipped_names_are_unique_and_say_what_the_case_is() -> None:
    cases = [case for case_set in SETS for case in read_cases().cases(case_set)]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        suffix = {("float32", "dense"): "-fp32", ("bfloat16", "bnb-4bit"): "-4bit"}
        shape = f"{case.d_in}x{case.d_out}-r{case.rank}-t{case.tokens}"
        assert case.name == shape + suffix.get((case.dtype, case.base), "")


def test_shipped_targets_name_providers() -> None:
    file = read_cases()
    for case_set in SETS:
        for case in file.cases(case_set):
            for target in file.targets(case):
                assert {target.provider, target.against} <= NAMES


def test_targets_are_those_of_the_case_and_those_of_every_case() -> None:
    file = read_cases()
    (case,) = select_cases(file, "cpu", ["4096x4096-r32-t512"])
    of = {
        (one.quantity, one.against): one.at_most
        for one in file.targets(case)
        if one.provider == "doratune-dora"
    }
    assert of == {
        ("time", "floor"): 1.25,
        ("time", "peft-lora"): 0.85,
        ("time", "peft-dora"): 0.16,
        ("saved", "peft-lora"): 1.02,
        ("peak", "peft-lora"): 1.02,
        ("peak", "peft-dora"): 0.80,
    }


def test_selection_keeps_the_order_of_the_file() -> None:
    file = small_file()
    assert [case.name for case in select_cases(file, "cpu", [])] == ["small", "small-bfloat16"]
    picked = select_cases(file, "cpu", ["small-bfloat16", "small"])
    assert [case.name for case in picked] == ["small", "small-bfloat16"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("smal", "did you mean small?"), ("small-gpu", "add --set gpu"), ("x", "one of small, small-bfloat16")],
)
def test_unknown_case(name: str, hint: str) -> None:
    with pytest.raises(InputError, match="unknown case") as caught:
        select_cases(small_file(), "cpu", ["small", name])
    assert hint in caught.value.message


def test_a_case_in_another_dtype_has_the_name_of_such_a_case() -> None:
    file = read_cases()
    (case,) = select_cases(file, "cpu", ["4096x4096-r32-t512"])
    (shipped,) = select_cases(file, "cpu", ["4096x4096-r32-t512-fp32"])
    assert in_dtype(case, "float32") == shipped and in_dtype(shipped, "bfloat16") == case
    assert in_dtype(case, None) is case and in_dtype(case, "bfloat16") is case


def test_targets_on_a_gpu_are_for_its_own_time_too() -> None:
    file = read_cases()
    for case_set, quantities in (("cpu", {"time"}), ("gpu", {"time", "gpu"})):
        for case in file.cases(case_set):
            found = {one.quantity for one in file.targets(case) if one.provider == "doratune-dora"}
            assert found == quantities | {"saved", "peak"}
