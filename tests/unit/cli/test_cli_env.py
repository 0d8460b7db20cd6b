"""``doratune env`` tells what the engine does on a processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from doratune.cli import env
from doratune.engine import matmul
from doratune.engine.cpu_traits import cpu_traits
from doratune.engine.triton.select import kernel_obstacle


def usable(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert env.main(["--json"]) == 0
    return json.loads(capsys.readouterr().out)["usable"]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize(
    ("name", "float32", "bfloat16", "float16"),
    [
        ("AMD Zen 3", "PyTorch's choice", "oneDNN lacks bfloat16", "oneDNN lacks float16"),
        ("AMD Zen 5", "oneDNN, faster than MKL", "bfloat16 instructions", "oneDNN lacks float16"),
        ("Intel Ice Lake", "PyTorch's choice", "only emulates bfloat16", "oneDNN lacks float16"),
        ("Intel Sapphire Rapids", "PyTorch's choice", "AMX, in blocks", "float16 instructions"),
    ],
)
def test_how_each_dtype_is_multiplied_and_why(
    name: str,
    float32: str,
    bfloat16: str,
    float16: str,
    processor: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: matmul.THREADS)
    processor(name)
    shown = usable(capsys)
    for dtype, words in (("float32", float32), ("bfloat16", bfloat16), ("float16", float16)):
        explained = shown[f"{dtype} on CPU"]
        assert words in explained
        widened = matmul.way_of(getattr(torch, dtype), cpu_traits()) is matmul.Way.WIDENED
        assert explained.startswith("widened to float32") == widened
    fast = name in ("AMD Zen 5", "Intel Sapphire Rapids")
    if not torch.cuda.is_available():
        assert shown["dtype auto"] == ("bfloat16" if fast else "float32")


def test_whether_the_kernels_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        obstacle = kernel_obstacle(torch.device("cuda"))
        expected = "used on this GPU" if obstacle is None else f"not used: {obstacle}"
    else:
        expected = "not used: no NVIDIA GPU"
    assert usable(capsys)["Triton kernels"] == expected


def test_why_a_gpu_does_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("doratune.engine.triton.select.find_spec", lambda _name: object())
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, obstacle in (((7, 5), "compute capability 7.5 is below 8.0"), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, found=capability: found)
        assert kernel_obstacle(gpu) == obstacle
    monkeypatch.setattr("doratune.engine.triton.select.find_spec", lambda _name: None)
    assert kernel_obstacle(gpu) == "Triton is not installed"
