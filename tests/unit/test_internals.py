"""The private names that each package uses exist, and are listed in one file of that package.

The names come from the files themselves, so a name that is added there is looked for from then on.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from packaging.version import Version
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from transformers.models.llama import modeling_llama

import doratune
from doratune.engine import _internals as of_engine
from doratune.evaluation import _internals as of_evaluation
from doratune.models import _internals as of_models
from doratune.models._internals import gguf_reader, setting_names
from doratune.speedups import _internals as of_speedups
from doratune.speedups.supervised_forward import SupervisedOutput
from doratune.training import _internals as of_training

SOURCE = Path(doratune.__file__).parent
PACKAGES = ("engine", "models", "speedups", "training", "evaluation", "serving", "bench")
OTHERS = ("torch", "transformers", "trl", "accelerate", "lm_eval")
DOCUMENTED = (
    "accelerate.utils",
    "torch.autograd.function",
    "torch.autograd.graph",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.tensor",
    "torch.nn.functional",
    "torch.utils.benchmark",
    "torch.utils.data",
    "lm_eval.api",
    "lm_eval.models",
    "lm_eval.tasks",
)
"""Modules inside these libraries whose names are documented."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a file imports from other projects, also inside functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OTHERS:
            yield from ((node.module or "", one.name) for one in node.names)
        elif isinstance(node, ast.Import):
            yield from ((one.name, "") for one in node.names if one.name.split(".")[0] in OTHERS)


def chains(path: Path) -> Iterator[str]:
    """The names behind assignments such as ``x = torch.ops.aten._y`` and ``x = getattr(torch, "_y")``."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            yield ast.unparse(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            owner, name, *_ = node.value.args
            yield f"{ast.unparse(owner)}.{ast.literal_eval(name)}"


def functions(path: Path) -> Iterator[str]:
    """The functions of an _internals.py, each of which knows something that cannot be imported."""
    yield from (node.name for node in tree(path).body if isinstance(node, ast.FunctionDef))


def listed() -> list[str]:
    """All names, as ``module:name`` or ``a.b.c``."""
    files = [SOURCE / package / "_internals.py" for package in PACKAGES]
    return [
        *(f"{module}:{name}" for file in files for module, name in imports(file) if name),
        # What peft/ imports, test_peft_internals.py looks for.
        *(chain for file in [*files, SOURCE / "peft" / "_internals.py"] for chain in chains(file)),
    ]


@pytest.mark.parametrize("name", listed())
def test_the_name_is_where_it_was(name: str) -> None:
    module, colon, attribute = name.partition(":")
    if not colon:
        module, _, attribute = name.partition(".")
    if module.split(".")[0] == "lm_eval":
        pytest.importorskip("lm_eval")
    imported: dict[str, Any] = {}
    first, *rest = attribute.split(".")
    exec(
        f"from {module} import {first} as found", imported
    )  # finds a module too, as the file's own line does
    found = imported["found"]
    for part in rest:
        found = getattr(found, part)


@cache
def model() -> Any:
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes))


def _fused_head() -> bool:
    plain = model()
    before = of_speedups.has_fused_head(plain)
    from_trl = importlib.import_module("trl.trainer.utils")
    if Version(trl.__version__) < Version("1.15"):
        pytest.skip("before TRL 1.15 no forward pass is replaced")
    from_trl.add_fused_lm_head(plain)
    fields = {name for name in SupervisedOutput.__dataclass_fields__}
    return (
        not before
        and of_speedups.has_fused_head(plain)
        and fields <= from_trl.FusedCausalLMOutput.__dataclass_fields__.keys()
    )


def _with_parameters() -> bool:
    layer, weight = nn.Linear(3, 2, bias=False), torch.ones(2, 3)
    twin, x = of_speedups.with_parameters(layer, weight=weight), torch.ones(3)
    return torch.equal(twin(x), weight @ x) and not torch.equal(layer(x), weight @ x)


def _asks_tasks_for(name: str) -> bool:
    pytest.importorskip("lm_eval")
    return f'getattr(task, "{name}"' in inspect.getsource(importlib.import_module("lm_eval.evaluator"))


def _lm_eval_table() -> bool:
    pytest.importorskip("lm_eval")
    return "Tasks" in of_evaluation.table({"results": {}, "versions": {}}, "results")


def _saves_for_checkpoint() -> bool:
    seen: list[bool] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(of_engine.saves_for_checkpoint())
        return x * x

    checkpoint(look, torch.ones(1, requires_grad=True), use_reentrant=False)
    return seen == [True] and not of_engine.saves_for_checkpoint()


def _shared_memory_of() -> bool:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, whose properties it reads")
    return of_engine.shared_memory_of(torch.cuda.get_device_properties(0)) > 0


def _wrapped_forward() -> bool:
    """accelerate keeps a module's own forward pass where we look for it."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    layer = nn.Linear(2, 2)
    plain = of_evaluation.forward_name(layer)
    add_hook_to_module(layer, ModelHook())
    setattr(layer, of_evaluation.forward_name(layer), lambda _: "ours")
    return plain == "forward" and layer(torch.ones(2)) == "ours"


def _four_bit_compute_dtype() -> bool:
    bnb = pytest.importorskip("bitsandbytes", reason="needs the extra doratune[bnb]")
    layer = bnb.nn.Linear4bit(64, 2, compute_dtype=torch.bfloat16)
    of_evaluation.set_compute_dtype(layer, torch.float32)
    return layer.compute_dtype == torch.float32 and hasattr(layer, "compute_type_is_set")


def _renamed() -> bool:
    renamings, converters = of_models.conversions(model())
    state = model().state_dict()
    found, pattern = of_models.renamed("norm.weight", renamings, converters, "model", state)
    return found == "model.norm.weight" and pattern is None


CANARIES = {
    "conversions": lambda: all(isinstance(part, list) for part in of_models.conversions(model())),
    "renamed": _renamed,
    "setting_names": lambda: {"vocab_size", "head_dim"} <= setting_names(LlamaConfig),
    "CHECKPOINT": lambda: importlib.import_module(of_engine.CHECKPOINT).checkpoint is checkpoint,
    "saves_for_checkpoint": _saves_for_checkpoint,
    "onednn_takes": lambda: of_engine.onednn_takes() <= {torch.bfloat16, torch.float16},
    "shared_memory_of": _shared_memory_of,
    "attention_implementation": lambda: of_speedups.attention_implementation(model()) == "sdpa",
    "takes_attention": lambda: of_speedups.takes_attention(model()),
    "eager_attention": lambda: of_speedups.eager_attention(model().model.layers[0].self_attn) is not None,
    "has_fused_head": _fused_head,
    "with_parameters": _with_parameters,
    "ROTARY": lambda: hasattr(modeling_llama, of_speedups.ROTARY),
    "EAGER_ATTENTION": lambda: hasattr(modeling_llama, of_speedups.EAGER_ATTENTION),
    "table": _lm_eval_table,
    "serialised": lambda: pytest.importorskip("lm_eval") and of_evaluation.serialised({1}) is not None,
    "runs_programs": lambda: _asks_tasks_for("UNSAFE_CODE"),
    "is_multimodal": lambda: _asks_tasks_for("MULTIMODAL"),
    "forward_name": _wrapped_forward,
    "set_compute_dtype": _four_bit_compute_dtype,
    "DEVICES_NAME": lambda: of_training.DEVICES_NAME in inspect.getsource(TrainingArguments.n_gpu.fget),
    "name_of": lambda: (
        hasattr(pytest.importorskip("lm_eval.api.task").ConfigurableTask, "task_name")
        or "task_name" in inspect.getsource(importlib.import_module("lm_eval.api.task"))
    ),
}
"""What cannot be imported: attributes and conventions, by the function or constant that knows them."""


@pytest.mark.parametrize("name", CANARIES)
def test_what_cannot_be_imported_still_holds(name: str) -> None:
    assert CANARIES[name]()


def test_every_function_and_convention_has_a_canary() -> None:
    files = [SOURCE / package / "_internals.py" for package in PACKAGES]
    constants = {
        target.id
        for file in files
        for node in tree(file).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert CANARIES.keys() == {name for file in files for name in functions(file)} | constants


@pytest.mark.parametrize("package", PACKAGES)
def test_each_name_has_a_line_that_says_what_it_is_for(package: str) -> None:
    file = SOURCE / package / "_internals.py"
    lines = file.read_text(encoding="utf-8").splitlines()
    for node in tree(file).body:
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] in OTHERS
            and "." in str(node.module)
        ):
            above = lines[node.lineno - 2]
            assert above.startswith(("#", "from trl")), ast.unparse(node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute | ast.Call):
            assert lines[node.lineno - 2].startswith("#"), ast.unparse(node)
        if isinstance(node, ast.FunctionDef):
            assert ast.get_docstring(node), node.name


def private(file: Path) -> Iterator[str]:
    """What a file takes from others' insides: undocumented modules, and names with an underscore."""
    for module, name in imports(file):
        inside = "." in module and not module.startswith(DOCUMENTED)
        if inside or any(part.startswith("_") for part in (*module.split("."), name)):
            yield f"{module}:{name}"
    own = {node.attr for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute) and _of_self(node)}
    own |= {one.name for one in ast.walk(tree(file)) if isinstance(one, ast.FunctionDef)}
    for node in ast.walk(tree(file)):
        is_private = (
            isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        )
        if ast.unparse(node) == "torch.ops":
            yield ast.unparse(node)
        if is_private and not _of_self(node) and node.attr not in own:
            yield ast.unparse(node)


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


FILES = [
    file
    for package in PACKAGES
    for file in sorted((SOURCE / package).rglob("*.py"))
    # PEFT's inside is listed in peft/_internals.py.
    if file.name != "_internals.py" and (package, file.name) != ("training", "adapter.py")
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_other_file_takes_from_others_insides(file: Path) -> None:
    assert list(private(file)) == []


def test_a_file_that_does_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text(
        "from transformers.masking_utils import sdpa_mask\nimport torch\ntorch.ops.aten._softmax(model._x)\n"
    )
    assert list(private(file)) == [
        "transformers.masking_utils:sdpa_mask",
        "torch.ops.aten._softmax",
        "model._x",
        "torch.ops",
    ]


def test_the_gguf_reader_draws_its_bar_by_a_name_of_its_module() -> None:
    assert callable(gguf_reader.tqdm) and "tqdm(" in inspect.getsource(gguf_reader)
