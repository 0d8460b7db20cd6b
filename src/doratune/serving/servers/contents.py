"""What is in a run, an adapter's or a model's folder, or a GGUF file, as far as servers care; no torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from doratune.errors import InputError
from doratune.evaluation.found import Found, find_trained
from doratune.records.adapter_folder import (
    EMBEDDING_FACTORS,
    LORA_FACTORS,
    MAGNITUDE,
    WEIGHTS,
    read_lora_settings,
    refuse_pickle,
)
from doratune.records.folders import refuse_missing_folder
from doratune.records.layout import (
    ADAPTER_CONFIG,
    ADAPTER_NAME,
    MERGE_NAME,
    MODEL_CONFIG,
)
from doratune.records.servers import Part, ServedContents, ServedKind
from doratune.records.storage import read_base_model
from doratune.serving.fused import lacking
from doratune.strict_json import read_object

MEANINGS: dict[Part, str] = {
    "dora": "DoRA (use_dora)",
    "rslora": "rank-stabilised scaling (use_rslora)",
    "rank_pattern": "several ranks (rank_pattern)",
    "alpha_pattern": "several alphas (alpha_pattern)",
    "changed_base": "a base changed at the start (init_lora_weights)",
    "bias": "trained biases (bias)",
    "no_bias": "bias is set, although no layer has one",
    "lora_bias": "a bias of B (lora_bias)",
    "saved_modules": "whole modules (modules_to_save)",
    "saved_norms": "normalisation layers (modules_to_save)",
    "tokens": "trained tokens (trainable_token_indices)",
    "embedding": "LoRA of an embedding",
    "head": "LoRA of the head (lm_head)",
    "convolution": "LoRA of a convolution",
    "parameters": "parameters without a layer (target_parameters)",
    "replication": "repeated layers (layer_replication)",
    "invocation": "aLoRA (alora_invocation_tokens)",
    "variant": "a variant of LoRA",
    "expression": "target_modules is an expression, not a list",
    "some_layers": "modules that some layers lack",
    "apart": "up without gate, q without v, or k or v without q",
}
"""How a message names each part of an adapter."""
VARIANTS = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config")
"""Settings of PEFT that change what an adapter computes."""
KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of init_lora_weights after which the base's weights are as they were."""
LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def read_contents(target: str) -> ServedContents:
    """Find what ``target`` names and read its settings and the names of its tensors.

    Args:
        target: A run directory, an adapter's or a model's folder, or a GGUF file.

    Raises:
        InputError: It is nothing of that, is not finished, or cannot be read.
    """
    path = Path(target).expanduser()
    if path.suffix == ".gguf":
        return _gguf(path)
    refuse_missing_folder(target, "run, adapter or model", where="doratune check-serving")
    found = find_trained(target)
    if found.run is None and (path / ADAPTER_NAME / ADAPTER_CONFIG).is_file():  # of ``convert --exact``
        found = Found(adapter=path / ADAPTER_NAME)
    if found.adapter is not None:
        return _adapter(found.adapter, found)
    if found.model is None and found.run is not None:
        raise InputError(
            "the folder holds evaluations of a base model, and nothing was trained",
            where=target,
            fix="name the folder of the model to serve",
        )
    folder = found.model or path
    if not (folder / MODEL_CONFIG).is_file():
        raise InputError(
            "there is nothing to serve",
            where="doratune check-serving",
            got=target,
            expected=f"a run directory, the folder of an adapter ({ADAPTER_CONFIG}) or of a model "
            f"({MODEL_CONFIG}), or a .gguf file",
        )
    return _model(folder, found.run)


def _adapter(folder: Path, found: Found) -> ServedContents:
    config = read_lora_settings(folder)
    refuse_pickle(folder)
    shapes = _shapes(folder / WEIGHTS)
    trained_on = found.record.model if found.record else read_base_model(folder)
    modules = {_module(name): shape for name, shape in shapes.items() if _is_a(name)}
    adapted = {name: shape for name, shape in modules.items() if not _is_experts(name)}
    return ServedContents(
        kind="adapter",
        run=str(found.run) if found.run else None,
        path=str(folder),
        ranks=sorted({shape[0] for shape in adapted.values()}),
        modules=sorted({name.rpartition(".")[2] for name in modules}),
        parts=sorted(set(_parts(config, shapes, modules)), key=list(MEANINGS).index),
        in_4bit=bool(found.record and found.record.config.get("load_in_4bit")),
        base=trained_on.name if trained_on else config.get("base_model_name_or_path") or None,
        architecture=None,
    )


def _parts(
    config: dict[str, Any], shapes: dict[str, list[int]], modules: dict[str, list[int]]
) -> Iterator[Part]:
    """What an adapter has besides A and B of linear layers, from its settings and tensors."""
    if config.get("use_dora") or any(f".{MAGNITUDE}" in name for name in shapes):
        yield "dora"
    for key, part in SETTINGS.items():
        if config.get(key):
            yield part
    if any(config.get(key) for key in VARIANTS):
        yield "variant"
    default = config.get("lora_alpha")
    if any(alpha != default for alpha in (config.get("alpha_pattern") or {}).values()):
        yield "alpha_pattern"
    if len({shape[0] for name, shape in modules.items() if not _is_experts(name)}) > 1:
        yield "rank_pattern"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in KEEPS_BASE:
        yield "changed_base"
    if isinstance(config.get("target_modules"), str):
        yield "expression"
    biases = [name for name in shapes if name.endswith(".bias") and ".lora_" not in name]
    if config.get("bias", "none") != "none":
        yield "bias" if biases else "no_bias"
    whole = [name for name in shapes if ".lora_" not in name and not name.endswith(".bias")]
    whole = [name for name in whole if ".base_layer." not in name and "trainable_tokens" not in name]
    if any("norm" in name for name in whole):
        yield "saved_norms"
    if any("norm" not in name for name in whole):
        yield "saved_modules"
    if any("trainable_tokens" in name for name in shapes):
        yield "tokens"
    if any(name.endswith(f".{EMBEDDING_FACTORS[0]}") for name in shapes):
        yield "embedding"
    if any(name.rpartition(".")[2] == "lm_head" for name in modules):
        yield "head"
    if any(len(shape) > 2 for shape in modules.values()):
        yield "convolution"
    layers = _layers(modules)
    if _lacking(layers) or config.get("layers_to_transform") is not None:
        yield "some_layers"
    if any(lacking(names) for names in layers.values()):
        yield "apart"


SETTINGS: dict[str, Part] = {
    "use_rslora": "rslora",
    "lora_bias": "lora_bias",
    "target_parameters": "parameters",
    "layer_replication": "replication",
    "alora_invocation_tokens": "invocation",
}
"""Settings that are a part if they are on."""


def _is_a(name: str) -> bool:
    return name.endswith((f".{LORA_FACTORS[0]}", f".{EMBEDDING_FACTORS[0]}"))


def _module(name: str) -> str:
    name = name.removesuffix(".weight").rpartition(".lora_")[0]
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def _is_experts(module: str) -> bool:
    """Whether it is a parameter of experts, whose A has the rows of all experts."""
    return module.endswith(".experts")


def _layers(modules: Iterable[str]) -> dict[int, set[str]]:
    """The modules of each layer by its number, without the names of their parents."""
    layers: dict[int, set[str]] = defaultdict(set)
    for name in modules:
        if found := LAYER.search(f".{name}."):
            layers[int(found[1])].add(name.rpartition(".")[2])
    return layers


def _lacking(layers: dict[int, set[str]]) -> bool:
    """Whether a layer lacks modules that others have, or comes after layers that have none."""
    return len({frozenset(names) for names in layers.values()}) > 1 or set(layers) != set(range(len(layers)))


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors, of which nothing is read."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            "the adapter cannot be read",
            where=str(path),
            got=str(error),
            expected="safetensors, as PEFT writes them",
            fix="copy the file again from where it was saved",
        ) from error


def _model(folder: Path, run: Path | None) -> ServedContents:
    config = read_object(folder / MODEL_CONFIG, "the model's configuration")
    if not any(folder.glob("*.safetensors")):
        raise InputError("the model has no weights", where=str(folder), expected="safetensors files")
    merged = folder / MERGE_NAME
    if merged.is_file() and read_object(merged, "the record of the merge").get("usable") is False:
        raise InputError(
            "the merged model is further from base and adapter than rounding explains",
            where=str(folder),
            got="usable: false in its merge.json",
            fix="merge again, with --dtype float32",
        )
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    return _served_model("model", folder, run=run, architecture=architecture)


def _gguf(path: Path) -> ServedContents:
    if not path.is_file():
        raise InputError("there is no such GGUF file", where="doratune check-serving", got=path)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.type")
        kind = field.contents() if field else "model"
    except Exception as error:  # a broken file can make the reader raise anything
        raise InputError("the GGUF file cannot be read", where=str(path), got=error) from error
    return _served_model("gguf_adapter" if kind == "adapter" else "gguf_model", path)


def _served_model(
    kind: ServedKind, path: Path, *, run: Path | None = None, architecture: str | None = None
) -> ServedContents:
    return ServedContents(
        kind=kind,
        run=str(run) if run else None,
        path=str(path),
        ranks=[],
        modules=[],
        parts=[],
        base=None,
        architecture=architecture,
    )
