"""Everything that ``peft/_internals.py`` lists exists, and everything used is listed."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn

import doratune

SOURCE = Path(doratune.__file__).parent
INTERNALS = SOURCE / "peft" / "_internals.py"
USERS = [*sorted((SOURCE / "peft").glob("*.py")), SOURCE / "training" / "adapter.py"]
"""The files that know PEFT's inside."""
ADAPTER_FOLDER = SOURCE / "records" / "adapter_folder.py"
"""It names the tensors in an adapter's file."""
OUTSIDE = ("peft", "transformers", "bitsandbytes", "torchao")


def imported(tree):
    """Module and name of everything that is imported from other projects' insides."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            if module.split(".")[0] in OUTSIDE and "." in module:
                yield from ((module, name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            inside = [name.name for name in node.names if "." in name.name]
            yield from ((name, "") for name in inside if name.split(".")[0] in OUTSIDE)


def listed(tree):
    """The table ATTRIBUTES."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "ATTRIBUTES":
            return ast.literal_eval(node.value)
    raise AssertionError("no ATTRIBUTES")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.embedding, self.conv = nn.Linear(4, 4), nn.Embedding(4, 4), nn.Conv1d(4, 4, 1)


@cache
def owners():
    """One of each thing in ATTRIBUTES."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tuner = get_peft_model(
        Net(), LoraConfig(r=2, use_dora=True, target_modules=["linear", "embedding", "conv"])
    ).base_model
    packed = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.bfloat16, compress_statistics=True)
    packed.load_state_dict(nn.Linear(64, 64).state_dict())
    packed = packed.to("cpu")
    return {
        "LoRA layer": tuner.model.linear,
        "LoRA embedding": tuner.model.embedding,
        "LoRA convolution": tuner.model.conv,
        "tuner": tuner,
        "module": nn.Linear(2, 2),
        "module with accelerate's hook": add_hook_to_module(nn.Linear(2, 2), ModelHook()),
        "convolution": nn.Conv1d(2, 2, 1),
        "4-bit layer": packed,
        "4-bit weight": packed.weight,
        "4-bit scales": packed.weight.quant_state,
    }


def missing(tree):
    """What a file lists and the installed libraries lack."""
    gone = []
    for module, name in imported(tree):
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            gone.append(f"{module}.{name}")
    for owner, names in listed(tree).items():
        gone += [f"{name} of a {owner}" for name in names if not hasattr(owners()[owner], name)]
    return gone


def parsed(path):
    return ast.parse(path.read_text())


def test_everything_listed_is_there():
    assert missing(parsed(INTERNALS)) == []


@pytest.mark.parametrize(("module", "name"), list(imported(parsed(INTERNALS))))
def test_a_name_that_moves_is_named(monkeypatch, module, name):
    monkeypatch.delattr(importlib.import_module(module), name)
    assert missing(parsed(INTERNALS)) == [f"{module}.{name}"]


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in listed(parsed(INTERNALS)).items() for name in names]
)
def test_an_attribute_that_moves_is_named(owner, name):
    table = INTERNALS.read_text().replace(f'"{name}":', f'"{name}_moved":')
    assert f"{name}_moved of a {owner}" in missing(ast.parse(table))


def test_each_import_states_its_purpose():
    """A comment stands above it, and no attribute's purpose is empty."""
    lines = INTERNALS.read_text().splitlines()
    for node in ast.walk(parsed(INTERNALS)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OUTSIDE:
            assert lines[node.lineno - 2].lstrip().startswith("#"), f"line {node.lineno}"
    assert all(purpose for names in listed(parsed(INTERNALS)).values() for purpose in names.values())


def test_no_other_file_imports_peft_s_inside():
    offenders = [
        (str(path.relative_to(SOURCE)), module)
        for path in sorted(SOURCE.rglob("*.py"))
        for module, _ in imported(parsed(path))
        if path not in (INTERNALS, SOURCE / "bench" / "_internals.py")
        and module.startswith("peft.")
        and module != "peft.optimizers"  # documented
    ]
    assert offenders == []


def test_users_of_the_list_outside_the_package():
    readers = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module == "doratune.peft._internals"
    }
    assert {reader for reader in readers if not reader.startswith("peft/")} == {
        "testing/calls.py",
        "training/adapter.py",
    }


def names_adapter_parts(tree):
    """The attributes and texts in a file that name the parts of PEFT's layers."""
    part = re.compile(r"\blora_(A|B|embedding|magnitude|\()")
    for node in ast.walk(tree):
        text = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
        if isinstance(text, str) and part.search(text):
            yield text


def test_no_other_file_names_the_parts_of_peft_s_layers():
    offenders = {
        str(path.relative_to(SOURCE)): found
        for path in SOURCE.rglob("*.py")
        if path not in (*USERS, ADAPTER_FOLDER) and (found := list(names_adapter_parts(parsed(path))))
    }
    assert offenders == {}
    found = names_adapter_parts(ast.parse("layer.lora_A; 'x.lora_B'; lora_alpha"))
    assert list(found) == ["lora_A", "x.lora_B"]


def own_names():
    """Attributes that doratune's layers define themselves."""
    from doratune.peft.enable import KINDS

    names = {"norms", "engine_options"}
    for kind in KINDS.values():
        for one in kind.__mro__:
            if one.__module__.startswith("doratune."):
                names |= set(vars(one))
    return names


def test_every_attribute_of_peft_s_layers_that_is_used_is_listed():
    known = {name for names in listed(parsed(INTERNALS)).values() for name in names}
    public = set(dir(nn.Module()))
    inside = {
        name
        for owner in ("LoRA layer", "LoRA embedding", "LoRA convolution")
        for name in {*dir(owners()[owner]), *vars(owners()[owner])["_modules"]}
    }
    foreign = (inside - public - own_names()) | {
        name for name in inside if name.startswith("_") and not name.endswith("__")
    }
    used = {
        (path.name, node.attr)
        for path in USERS
        if path.name != "adapter_file.py"  # it has no layers, and LoraConfig's fields are documented
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in foreign - own_names()
    }
    # Public names of layers, which PyTorch documents for those that PEFT's stand for.
    documented = {"weight", "bias", "in_features", "out_features", "groups", "padding_mode"}
    assert {f"{file}: {name}" for file, name in used if name not in known | documented} == set()
    assert {"lora_A", "scaling", "_modules"} <= {name for _, name in used}  # the search finds what there is
