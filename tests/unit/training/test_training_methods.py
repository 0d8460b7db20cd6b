"""Each shipped method trains, is saved and evaluated, and the saved run scores as the trained model does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import find_trained
from doratune.evaluation.target import load_target
from doratune.methods.find import get_method, method_names
from doratune.models.load import load_model
from doratune.peft.adapter_file import read_lora_config
from doratune.serving.adapted import open_adapted
from doratune.serving.merged_weights import MergedWeights
from doratune.serving.merging.config import MergeConfig
from doratune.serving.merging.merge import merge
from doratune.serving.servers.contents import read_contents
from doratune.study.cell import engine_of
from doratune.training import train as training
from doratune.training.adapter import add_adapter
from doratune.training.config import TrainConfig

IDS = torch.arange(20, 60).reshape(2, 20)
SETTINGS: dict[str, Any] = {
    "task": ["sample-boolq"],
    "rows": 12,
    "steps": 3,
    "batch_size": 4,
    "rank": 4,
    "alpha": 8.0,
    "dropout": 0.0,
    "cutoff": 512,
    "learning_rate": 5e-3,
    "dtype": "float32",
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def trained(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, **options: Any) -> tuple[Any, torch.Tensor]:
    """The run's record, and the logits of the trained model that is still in memory."""
    made = []
    build = training.build_trainer

    def built(*args: Any, **others: Any) -> Any:
        made.append(build(*args, **others))
        return made[-1]

    monkeypatch.setattr(training, "build_trainer", built)
    record = training.train(config, **options)
    return record, logits(made[-1][0].model)


@pytest.fixture(scope="module")
def base_logits(tiny_model: Path) -> torch.Tensor:
    return logits(load_model(str(tiny_model), dtype="float32").model)


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_evaluated_as_it_was_trained(
    name: str, base_logits: torch.Tensor, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(method=name, model=str(tiny_model), output=tmp_path / "run", **SETTINGS)
    record, in_memory = trained(monkeypatch, config)
    method = get_method(name)
    assert record.method == name
    moved = (in_memory - base_logits).abs().max()
    assert moved > 1e-4, "training changed what the model computes"
    target = load_target(
        EvalConfig(target=str(config.output), task=["sample-boolq"]), find_trained(str(config.output))
    )
    torch.testing.assert_close(logits(target.model), in_memory, rtol=0, atol=1e-3 * float(moved))
    assert target.scored.merged == (method.merges != "nothing")
    engine = record.training.layers
    assert (engine is not None and engine.engine == 10 and not engine.left) == method.engine


def test_the_method_in_the_reference_is_evaluated_as_it_was_trained(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/tasks-models-methods.md").read_text(encoding="utf-8")
    path, run = tmp_path / "method.yaml", tmp_path / "run"
    path.write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    config = TrainConfig(method=str(path), model=str(tiny_model), output=run, **SETTINGS)
    record, in_memory = trained(monkeypatch, config)
    target = load_target(EvalConfig(target=str(run), task=["sample-boolq"]), find_trained(str(run)))
    torch.testing.assert_close(logits(target.model), in_memory, rtol=0, atol=1e-5)
    assert target.scored.merged and engine_of(record) == "doratune"


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed but")
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 10 LoRA tensor")  # of a bias, which has one dimension
def test_a_bias_that_the_base_lacks_is_evaluated_unmerged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT trains it and cannot merge it; the engine leaves it to PEFT, and the record says so."""
    run = tmp_path / "run"
    path = own(tmp_path, "lora_bias: true")
    record, in_memory = trained(
        monkeypatch, TrainConfig(method=path, model=str(tiny_model), output=run, **SETTINGS)
    )
    assert record.training.layers.left == {"lora_bias not supported": 10} and engine_of(record) == "peft"
    target = load_target(EvalConfig(target=str(run), task=["sample-boolq"]), find_trained(str(run)))
    torch.testing.assert_close(logits(target.model), in_memory, rtol=0, atol=1e-5)
    assert not target.scored.merged and "base layer has no bias" in str(target.apart)
    with pytest.raises(InputError, match="those of the base model have none") as caught:
        MergedWeights(open_adapted(str(run)))
    assert "layers.0.self_attn.q_proj.bias" in str(caught.value.got)


OWN = """
name: my-method
title: My method
description: a method of a test
peft: {peft}
arguments: {{{arguments}}}
engine: {engine}
merges: {merges}
"""


def own(
    folder: Path, arguments: str, *, peft: str = "LoraConfig", engine: bool = True, merges: str = "base"
) -> str:
    path = folder / "my.yaml"
    text = OWN.format(peft=peft, arguments=arguments, engine=str(engine).lower(), merges=merges)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_what_its_method_says_not_to_merge_is_evaluated_apart_and_not_merged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    method = own(tmp_path, "use_dora: true", merges="nothing")
    trained(monkeypatch, TrainConfig(method=method, model=str(tiny_model), output=run, **SETTINGS))
    target = load_target(EvalConfig(target=str(run), task=["sample-boolq"]), find_trained(str(run)))
    assert not target.scored.merged
    with pytest.raises(InputError, match="says that it merges into nothing") as caught:
        merge(MergeConfig(run=[str(run)], output=tmp_path / "merged"))
    assert caught.value.where == str(run) and not (tmp_path / "merged").exists()


def adapted(model: Path, **settings: Any) -> Any:
    config = TrainConfig(model=str(model), output=Path("run"), **{**SETTINGS, **settings})
    return add_adapter(load_model(str(model), dtype=config.dtype).model, config)


def trainable(model: Any) -> int:
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["embed_tokens"]])
def test_the_matched_rank_is_the_smallest_with_as_many_parameters(
    tiny_model: Path, targets: list[str]
) -> None:
    dora = trainable(adapted(tiny_model, method="dora", targets=targets))
    matched = adapted(tiny_model, method="lora-matched", targets=targets)
    config = matched.peft_config["default"]
    below = adapted(tiny_model, method="lora", targets=targets, rank=config.r - 1)
    assert trainable(below) < dora <= trainable(matched)
    assert config.lora_alpha / config.r == SETTINGS["alpha"] / SETTINGS["rank"]


def lora_plus_rates(model: Path, run: Path, **settings: Any) -> set[tuple[str, float]]:
    """The parts of LoRA+'s adapters, each with the rate that the optimizer has for it."""
    values = {**SETTINGS, **settings}
    config = TrainConfig(method="lora-plus", model=str(model), output=run, **values)
    base = training.load_base(config)
    rows = training.encode_rows(config, base, training.load_rows(config)[0])
    metrics, stop = training.MetricsCallback(config.output), training.StopCallback()
    trainer, _ = training.build_trainer(config, base, rows, metrics, stop)
    optimizer = trainer.create_optimizer()
    names = {id(one): name for name, one in trainer.model.named_parameters()}
    return {
        (next(part for part in names[id(one)].split(".") if part.startswith("lora_")), group["lr"])
        for group in optimizer.param_groups
        for one in group["params"]
    }


def test_lora_plus_has_a_higher_rate_for_b(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert lora_plus_rates(tiny_model, tmp_path / "run") == {("lora_A", 5e-3), ("lora_B", 16 * 5e-3)}
    assert "LoRA+" not in caplog.text


def test_the_fixed_rate_of_an_embedding_with_lora_plus_is_said(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates = lora_plus_rates(tiny_model, tmp_path / "run", targets=["q_proj", "embed_tokens"])
    assert {("lora_embedding_A", 1e-6), ("lora_embedding_B", 1e-6)} <= rates
    assert "at a rate of 1e-06" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "peft", "said"),
    [
        ("use_dorra: true", "LoraConfig", "did you mean use_dora?"),
        ("use_dora: true, lora_bias: true", "LoraConfig", "lora_bias=True is not supported for DoRA"),
        ("init_lora_weights: pisssa", "LoraConfig", "pisssa"),
        ("init_lora_weights: lora_ga", "LoraConfig", "whose change comes from gradients"),
        ("init_lora_weights: eva", "LoraConfig", "without it PEFT trains plain LoRA"),
        ("alora_invocation_tokens: [1]", "LoraConfig", "switches this adapter on"),
        ("modules_to_save: [norrm]", "LoraConfig", "did you mean norm?"),
        ("rank_pattern: {q_prog: 8}", "LoraConfig", "did you mean q_proj?"),
        ("inference_mode: true", "LoraConfig", "is not trained"),
        ("use_dora: 'no'", "LoraConfig", "expected: true or false"),
        ("", "LoraConfg", "did you mean LoraConfig?"),
        ("", "AdaLoraConfig", "needs further calls"),
        ("", "PrefixTuningConfig", "no such configuration"),
    ],
)
def test_what_peft_refuses_is_one_message(
    arguments: str, peft: str, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    path = own(tmp_path, arguments, peft=peft, engine=peft == "LoraConfig")
    with pytest.raises(InputError) as caught:
        adapted(tiny_model, method=path)
    assert said in str(caught.value) and path in str(caught.value)


def test_a_setting_that_peft_does_not_know_is_told_by_its_place(tiny_model: Path, tmp_path: Path) -> None:
    path = own(tmp_path, "", peft="VeraConfig", engine=False)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("settings: {rank: rr}\n")
    with pytest.raises(InputError, match="VeraConfig has no such argument") as caught:
        adapted(tiny_model, method=path)
    assert (caught.value.where, caught.value.got) == (f"{path}, settings, rank", "rr")


def test_a_method_that_does_not_fit_the_model_is_one_message(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="PEFT refuses the arguments of IA3Config") as caught:
        adapted(tiny_model, method="ia3", targets=["q_proj"])
    assert "feedforward_modules" in str(caught.value)


def test_an_own_method_resumes_only_as_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on from step 2 to the same end: an initialisation that changes the base is repeated."""
    path = own(tmp_path, "init_lora_weights: pissa, use_rslora: true")
    settings = {**SETTINGS, "method": path, "model": str(tiny_model), "save_steps": 2}
    whole, in_memory = trained(monkeypatch, TrainConfig(output=tmp_path / "whole", **settings))
    assert whole.method == "my-method" and whole.definition["arguments"]["use_rslora"]
    run = tmp_path / "run"
    shutil.copytree(
        tmp_path / "whole", run, ignore=shutil.ignore_patterns("record.json", "adapter", "checkpoint-3")
    )
    own(tmp_path, "init_lora_weights: olora, use_rslora: true")
    with pytest.raises(InputError, match="started with another method"):
        training.train(TrainConfig(output=run, **settings), resume=True)
    own(tmp_path, "init_lora_weights: pissa, use_rslora: true")
    Path(path).write_text(Path(path).read_text().replace("title: ", "title: Still "))
    _, resumed = trained(monkeypatch, TrainConfig(output=run, **settings), resume=True)
    torch.testing.assert_close(resumed, in_memory, rtol=0, atol=1e-6)


def test_a_changed_optimizer_is_noticed_when_a_run_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    """PEFT's configuration does not tell it, and the checkpoint would bring back the old rates."""
    path, run = Path(own(tmp_path, "")), tmp_path / "run"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "optimizer: {name: lora-plus, ratio: 4}\n", encoding="utf-8")
    settings = {**SETTINGS, "method": str(path), "model": str(tiny_model), "save_steps": 2}
    training.train(TrainConfig(output=run, **settings))
    (run / "record.json").unlink()
    path.write_text(text + "optimizer: {name: lora-plus, ratio: 8}\n", encoding="utf-8")
    with pytest.raises(InputError, match="started with another method") as caught:
        training.train(TrainConfig(output=run, **settings), resume=True)
    assert "'ratio': 8" in str(caught.value.got) and "'ratio': 4" in str(caught.value.expected)


@pytest.mark.parametrize("method", ["pissa", "dora-pissa"])
def test_a_base_that_was_changed_in_bfloat16_is_changed_alike(
    method: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Evaluated in float32 on a CPU, on the weights that training had: the change of the base was rounded."""
    settings = {**SETTINGS, "dtype": "bfloat16", "learning_rate": 1e-7, "steps": 1}
    config = TrainConfig(method=method, model=str(tiny_model), output=tmp_path / "run", **settings)
    training.train(config)
    run = str(config.output)
    target = load_target(EvalConfig(target=run, task=["sample-boolq"]), find_trained(run))
    rounded = adapted(tiny_model, method=method, dtype="bfloat16").float()
    torch.testing.assert_close(logits(target.model), logits(rounded), rtol=0, atol=2e-5)


def test_what_needs_a_and_b_refuses_other_methods_by_name(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vera"
    adapted(tiny_model, method="vera").save_pretrained(folder)
    for refuse in (
        lambda: open_adapted(str(folder), command="doratune merge"),
        lambda: read_contents(str(folder)),
        lambda: read_lora_config(folder),
    ):
        with pytest.raises(InputError, match="only adapters of LoRA and DoRA") as caught:
            refuse()
        assert caught.value.got == "peft_type VERA"
