"""Fixtures that several rooms of the tests use."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# Read by huggingface_hub when it is imported: no test waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Read by torch when it is imported: the workers of `pytest -n` share the cores, and threads that wait spin.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))


def pytest_collection_finish() -> None:
    """Spare each training's collection of garbage what was imported, which takes a third of a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the end of the process collect everything, as Triton complains of what it does not."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this round's own, as rows that older code tokenised prove nothing; models are shared."""
    from doratune.cache import cache_home

    models, home = cache_home() / "models", tmp_path_factory.mktemp("cache")
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DORATUNE_CACHE", str(home))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power, so none waits until what it writes is on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def processor() -> Iterator[Callable[[str], None]]:
    """Has the engine decide as on another processor, by its name."""
    import torch

    from doratune.engine.cpu_traits import CpuTraits, assume_cpu

    half = frozenset({torch.bfloat16, torch.float16})
    processors = {
        # name: AVX-512, its BF16, AMX, what oneDNN takes
        "AMD Zen 3": (False, False, False, frozenset[torch.dtype]()),
        "AMD Zen 5": (True, True, False, frozenset({torch.bfloat16})),
        "Intel Ice Lake": (True, False, False, frozenset({torch.bfloat16})),
        "Intel Cooper Lake": (True, True, False, frozenset({torch.bfloat16})),
        "Intel Sapphire Rapids": (True, True, True, half),
        "Apple M1": (False, False, False, frozenset[torch.dtype]()),
    }
    with ExitStack() as stack:

        def assume(name: str) -> None:
            avx512, avx512_bf16, amx_bf16, takes = processors[name]
            vendor = name.partition(" ")[0]
            traits = CpuTraits(
                x86=vendor != "Apple",
                vendor=vendor,
                avx512=avx512,
                avx512_bf16=avx512_bf16,
                amx_bf16=amx_bf16,
                onednn=torch.backends.mkldnn.is_available(),
                onednn_takes=takes,
            )
            stack.enter_context(assume_cpu(traits))

        yield assume


@pytest.fixture
def large_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the engine compute the tests' small layers as it does large ones."""
    from doratune.engine import composite

    monkeypatch.setattr(composite, "SMALL_ELEMENTS", 0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer LlamaForCausalLM and a small byte-level BPE tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from doratune.data.samples import SAMPLE_TASKS, generate

    folder = tmp_path_factory.mktemp("tiny-llama")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [
        row["instruction"] + row["output"] for task in SAMPLE_TASKS for row in generate(task, "train")[:200]
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,  # a block of bitsandbytes' 4-bit weights
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def boolq_rows(tmp_path: Path) -> Path:
    """A small file in the LLM-Adapters layout."""
    from doratune.data.samples import generate

    path = tmp_path / "boolq.json"
    path.write_text(json.dumps(generate("sample-boolq", "train")[:24]), encoding="utf-8")
    return path
