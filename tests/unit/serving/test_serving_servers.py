"""Which servers load what, against adapters that PEFT writes; transformers is tried, the others were read."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from gguf import GGUFWriter
from peft import LoraConfig, PeftModel, get_peft_model
from synthetic_runs import write_run
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from doratune.cli.check_serving import main
from doratune.errors import InputError
from doratune.records.servers import Part, ServerAnswer, ServingCheck
from doratune.serving.servers.contents import MEANINGS, read_contents
from doratune.serving.servers.facts import PARTS, read_servers
from doratune.serving.servers.served import CONVERTED, NOT_CONVERTED, check_serving

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
QV = ["q_proj", "v_proj"]
ADAPTERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "lora": ({}, set()),
    "dora": ({"use_dora": True}, {"dora"}),
    "rslora": ({"use_rslora": True}, {"rslora"}),
    "ranks": ({"rank_pattern": {"v_proj": 4}}, {"rank_pattern"}),
    "equal-ranks": ({"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 16}}, set()),
    "alphas": ({"alpha_pattern": {"v_proj": 4}}, {"alpha_pattern"}),
    "pissa": ({"init_lora_weights": "pissa"}, {"changed_base"}),
    "gaussian": ({"init_lora_weights": "gaussian"}, set()),
    "no-bias": ({"bias": "all"}, {"no_bias"}),
    "bias": ({"bias": "lora_only"}, {"bias"}),
    "bias-of-b": ({"lora_bias": True}, {"lora_bias"}),
    "head-saved": ({"modules_to_save": ["lm_head"]}, {"saved_modules"}),
    "norms": ({"modules_to_save": ["input_layernorm"]}, {"saved_norms"}),
    "tokens": ({"trainable_token_indices": [1, 2]}, {"tokens"}),
    "embedding": ({"target_modules": [*QV, "embed_tokens"]}, {"embedding"}),
    "head": ({"target_modules": [*QV, "lm_head"]}, {"head"}),
    "expression": ({"target_modules": r".*self_attn\.(q|v)_proj"}, {"expression"}),
    "one-layer": ({"layers_to_transform": [0]}, {"some_layers"}),
    "k-alone": ({"target_modules": ["k_proj"]}, {"apart"}),
    "up-alone": ({"target_modules": ["up_proj", "down_proj"]}, {"apart"}),
    "experts": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, {"parameters"}),
    "repeated": ({"layer_replication": [[0, 2], [1, 2]]}, {"replication"}),
    "invoked": ({"alora_invocation_tokens": [3, 4]}, {"invocation"}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bases and an adapter of each of ADAPTERS."""
    home = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(home / "base")
    LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)).save_pretrained(home / "base-bias")
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)).save_pretrained(home / "base-experts")
    for name, (settings, _) in ADAPTERS.items():
        base = base_of(home, name)
        config = {"target_modules": QV, "init_lora_weights": False, **settings, "r": 8, "lora_alpha": 16}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(base)
            get_peft_model(model, LoraConfig(**config, task_type="CAUSAL_LM")).save_pretrained(
                str(home / name)
            )
    return home


def base_of(home: Path, name: str) -> Path:
    """The base of an adapter."""
    return home / {"bias": "base-bias", "experts": "base-experts"}.get(name, "base")


def answer(check: ServingCheck, server: str) -> ServerAnswer:
    return next(one for one in check.servers if one.server == server)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_parts_of_an_adapter_are_found_and_transformers_loads_it(folders: Path, name: str) -> None:
    contents = read_contents(str(folders / name))
    assert set(contents.parts) == ADAPTERS[name][1]
    assert contents.ranks == ([4, 8] if name == "ranks" else [8]) and contents.kind == "adapter"
    assert contents.base == str(base_of(folders, name))
    assert answer(check_serving(str(folders / name)), "transformers").loads == "yes"
    base = AutoModelForCausalLM.from_pretrained(base_of(folders, name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert PeftModel.from_pretrained(base, folders / name)(torch.arange(5)[None]).logits.isfinite().all()


def test_every_part_has_a_fact_a_meaning_and_an_adapter() -> None:
    assert set(PARTS) == set(get_args(Part)) == set(MEANINGS)
    found = set().union(*(parts for _, parts in ADAPTERS.values()))
    assert set(PARTS) - found == {"variant", "convolution"}, "those below"
    assert not CONVERTED & NOT_CONVERTED
    for server in read_servers().values():
        assert set(server.parts) == set(PARTS)
        assert all(fact.where for fact in server.parts.values())


@pytest.mark.parametrize(
    ("key", "shape", "part"),
    [("use_bdlora", None, "variant"), ("kasa_config", None, "variant"), (None, [8, 4, 3], "convolution")],
)
def test_variants_and_convolutions(
    folders: Path, tmp_path: Path, key: str | None, shape: list[int] | None, part: str
) -> None:
    from safetensors.torch import save_file

    config = json.loads((folders / "lora" / "adapter_config.json").read_text())
    if key:
        config[key] = {"some": "setting"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"base_model.model.layers.0.mixer.lora_A.weight": torch.zeros(shape or [8, 4])}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert part in read_contents(str(tmp_path)).parts


LOADS = {
    # vLLM, SGLang, TGI, llama.cpp, Ollama
    "lora": "yes yes yes yes yes",
    "dora": "no no wrongly no no",
    "rslora": "yes wrongly yes wrongly wrongly",
    "ranks": "yes no wrongly yes yes",
    "pissa": "no wrongly wrongly wrongly wrongly",
    "no-bias": "no yes yes yes yes",
    "head-saved": "no wrongly wrongly no no",
    "norms": "no no wrongly wrongly wrongly",
    "expression": "yes no yes yes yes",
    "head": "yes yes wrongly yes yes",
}


@pytest.mark.parametrize("name", LOADS)
def test_an_answer_follows_from_the_parts(folders: Path, name: str) -> None:
    check = check_serving(str(folders / name))
    assert [one.loads for one in check.servers] == [*LOADS[name].split(), "yes"]
    for one in check.servers:
        assert bool(one.obstacles) == (one.loads != "yes") == bool(one.ways) and bool(one.start) != bool(
            one.ways
        )


def named(check: ServingCheck, server: str) -> str:
    return "; ".join(one.what for one in answer(check, server).obstacles)


def with_config(source: Path, folder: Path, **settings: Any) -> Path:
    """A copy of an adapter with other settings."""
    folder.mkdir()
    config = json.loads((source / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    (folder / "adapter_model.safetensors").symlink_to(source / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("rank", "setting", "vllm", "tgi"),
    [(8, 8, "yes", "yes"), (12, 16, "yes", "wrongly"), (48, 64, "yes", "yes"), (1024, None, "no", "yes")],
)
def test_the_rank_must_be_one_that_the_server_takes(
    tmp_path: Path, rank: int, setting: int | None, vllm: str, tgi: str
) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    LoraConfig(r=rank, target_modules=QV, base_model_name_or_path="org/base").save_pretrained(str(folder))
    layer = "base_model.model.model.layers.0.self_attn"
    save_file(
        {f"{layer}.{name}.lora_A.weight": torch.zeros(rank, 4) for name in QV},
        folder / "adapter_model.safetensors",
    )
    check = check_serving(str(folder))
    assert (answer(check, "vllm").loads, answer(check, "tgi").loads) == (vllm, tgi)
    if setting:
        assert f"--max-lora-rank {setting} " in answer(check, "vllm").start[0]
    else:
        assert f"rank {rank} (right: at most 512)" in named(check, "vllm")
    if tgi == "wrongly":
        assert "rank 12 (right: 8 and multiples of 16)" in named(check, "tgi")


def test_modules_that_a_server_does_not_adapt(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    LoraConfig(r=8, target_modules=["c_attn"]).save_pretrained(str(folder))
    save_file(
        {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(8, 4)},
        folder / "adapter_model.safetensors",
    )
    check = check_serving(str(folder))
    assert check.contents.modules == ["c_attn"] and check.contents.parts == []
    assert (answer(check, "sglang").loads, answer(check, "tgi").loads) == ("no", "wrongly")
    assert "c_attn" in named(check, "sglang") and "c_attn" in named(check, "tgi")
    assert {way.command.split()[1] for way in answer(check, "sglang").ways} == {"merge"}


def test_the_ways_are_commands_that_parse_and_suit_the_server(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my adapter"
    folder.symlink_to(folders / "dora")
    monkeypatch.chdir(tmp_path)
    check = check_serving("my adapter/")
    makes = {one.server: [shlex.split(way.command)[1] for way in one.ways] for one in check.servers}
    assert makes == {
        "vllm": ["merge", "convert"],
        "sglang": ["merge", "convert"],
        "tgi": ["merge", "convert"],
        "llama-cpp": ["export", "convert"],
        "ollama": ["merge", "export", "convert"],
        "transformers": [],
    }
    merge, convert = answer(check, "vllm").ways
    assert merge.command == "doratune merge 'my adapter' --output 'my adapter-merged'"
    assert merge.start == ["vllm serve 'my adapter-merged'"]
    assert shlex.split(convert.start[0])[-1] == "my adapter=my adapter-lora"
    assert answer(check_serving(str(folders / "bias-of-b")), "vllm").ways[0].makes == "a merged model"
    assert len(answer(check_serving(str(folders / "bias-of-b")), "vllm").ways) == 1
    assert len(answer(check_serving(str(folders / "head-saved")), "vllm").ways) == 1, "conversion keeps it"


def test_of_a_run_in_4_bits_the_base_is_named(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_run(run, "dora", {}, config={"load_in_4bit": True})
    with_config(folders / "dora", run / "adapter")
    monkeypatch.chdir(tmp_path)
    commands = [way.command for one in check_serving("run").servers for way in one.ways]
    assert len({shlex.split(one)[1] for one in commands}) == 3
    assert all(f"run --base {check_serving('run').contents.base} " in one for one in commands)


def test_the_folder_of_an_exact_conversion(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "exact").mkdir()
    with_config(folders / "lora", tmp_path / "exact" / "adapter", base_model_name_or_path="exact/base")
    check = check_serving(str(tmp_path / "exact"))
    assert check.contents.path == str(tmp_path / "exact" / "adapter")
    assert answer(check, "vllm").start[0].startswith("vllm serve exact/base --enable-lora ")


def test_a_built_in_base_is_looked_up(folders: Path, tmp_path: Path) -> None:
    adapter = with_config(folders / "lora", tmp_path / "one", base_model_name_or_path="smollm2-135m")
    (start,) = answer(check_serving(str(adapter)), "sglang").start
    assert '--model-path "$(doratune models --path smollm2-135m)" ' in start
    adapter = with_config(folders / "lora", tmp_path / "two", base_model_name_or_path="models/some.gguf")
    start = answer(check_serving(str(adapter)), "llama-cpp").start
    assert "--base BASE " in start[0] and "--model models/some.gguf " in start[1]


def test_a_model_and_gguf_files(folders: Path, tmp_path: Path) -> None:
    check = check_serving(str(folders / "base"))
    assert (check.contents.kind, check.contents.architecture) == ("model", "LlamaForCausalLM")
    assert [one.loads for one in check.servers] == ["yes", "yes", "yes", "no", "yes", "yes"]
    assert answer(check, "vllm").start == [f"vllm serve {folders / 'base'}"]
    for kind, loads in (
        ("model", ["no", "yes", "no", "yes", "yes", "yes"]),
        ("adapter", ["no", "no", "no", "yes", "yes", "no"]),
    ):
        path = tmp_path / f"{kind}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_type(kind)
        for write in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
        ):
            write()
        writer.close()
        check = check_serving(str(path))
        assert check.contents.kind == f"gguf_{kind}"
        assert [one.loads for one in check.servers] == loads
        assert answer(check, "llama-cpp").start[0].endswith(str(path))


def test_an_architecture_that_ollama_does_not_convert(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["PhiForCausalLM"]}')
    (tmp_path / "model.safetensors").symlink_to(folders / "base" / "model.safetensors")
    check = check_serving(str(tmp_path))
    assert named(check, "ollama") == "the architecture PhiForCausalLM"


def test_a_merged_model_that_failed_its_check_is_refused(folders: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folders / "base" / name)
    (tmp_path / "merge.json").write_text('{"usable": true}')
    assert check_serving(str(tmp_path)).contents.kind == "model"
    (tmp_path / "merge.json").write_text('{"usable": false}')
    with pytest.raises(InputError, match="further from base and adapter"):
        check_serving(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "there is nothing to serve"),
        ({"config.json": "{}"}, "the model has no weights"),
        ({"adapter_config.json": '{"peft_type": "IA3"}'}, "only adapters of LoRA and DoRA can be"),
        ({"adapter_config.json": "{"}, "cannot be read"),
        ({"adapter_config.json": '{"peft_type": "LORA"}'}, "the adapter cannot be read"),
        ({"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.bin": ""}, "is a pickle"),
        (
            {"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": "x"},
            "cannot be read",
        ),
        ({"config.yaml": ""}, "not finished"),
    ],
)
def test_bad_input(tmp_path: Path, content: dict[str, str], message: str) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        check_serving(str(tmp_path))


@pytest.mark.parametrize("name", ["absent.gguf", "./absent", "broken.gguf"])
def test_a_path_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.gguf").write_text("GG")
    with pytest.raises(InputError, match=r"there is no such|cannot be read"):
        check_serving(name)


def test_the_terminal_fits_80_columns_and_the_json_is_the_record(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folders)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["dora"]) == 0
    shown = capsys.readouterr().out
    commands = [line for line in shown.splitlines() if line.startswith("  ")]
    others = [line for line in shown.splitlines() if not line.startswith("  ")]
    assert max(map(len, others)) <= 80
    assert "  doratune merge dora --output dora-merged" in commands
    words = " ".join(shown.split())
    assert (
        "refuses DoRA (use_dora)" in words
        and "As of 29 November 2026" in words
        and "only read in Ollama" in words
    )
    assert main(["dora", "--json"]) == 0
    printed = ServingCheck.model_validate(json.loads(capsys.readouterr().out))
    assert printed == check_serving("dora")


def test_it_needs_no_torch(folders: Path) -> None:
    code = (
        "import sys; from doratune.cli.check_serving import main\n"
        f"main([{str(folders / 'dora')!r}])\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
