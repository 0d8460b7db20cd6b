"""An adapter is merged where that is exact to rounding; the merged model is compared with the unmerged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LilyConfig, LoraConfig, PeftModel, get_peft_model

from doratune.errors import DoratuneError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import find_trained
from doratune.evaluation.merge import merge, merge_obstacle
from doratune.evaluation.target import Target, load_target
from doratune.models.load import LoadedModel, load_model

IDS = torch.arange(5, 45).reshape(2, 20)


@pytest.fixture
def tied_model(tiny_model: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=True)
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    folder = tmp_path / "tied"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def adapted(base: LoadedModel, *targets: str, **settings: Any) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=list(targets), **{"use_dora": True, **settings}
    )
    model: Any = get_peft_model(base.model, config)
    model.peft_config["default"].base_model_name_or_path = base.name
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def loaded(adapter: Path, **settings: Any) -> Target:
    config = EvalConfig(target=str(adapter), task=[], **{"dtype": "float32", **settings})
    return load_target(config, find_trained(config.target))


TIED = pytest.mark.filterwarnings(
    "ignore:Model (has|with) `tie_word_embeddings", "ignore:Setting `save_embedding_layers`"
)


@TIED
@pytest.mark.parametrize("targets", [("embed_tokens", "q_proj"), ("lm_head",), ("lm_head", "embed_tokens")])
def test_a_weight_that_is_used_twice_is_not_merged(
    targets: tuple[str, ...], tied_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_model(str(tied_model), dtype="float32")
    model = adapted(base, *targets)
    wanted = model(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.INFO, "doratune"):
        target = loaded(tmp_path / "adapter")
    assert not target.scored.merged and target.scored.merge_difference is None
    found = target.model(IDS).logits
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    said = [record.getMessage() for record in caplog.records if "scored:" in record.getMessage()]
    assert len(said) == 1 and "shares its weight" in said[0], said
    assert (model.merge_and_unload()(IDS).logits - wanted).abs().max() > 1e-2, "merging it would be wrong"


@TIED
def test_of_untied_layers_the_merge_and_its_rounding_are_said(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_model(str(tiny_model), dtype="float32")
    model = adapted(base, "q_proj", "lm_head")
    wanted = model(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.INFO, "doratune"):
        target = loaded(tmp_path / "adapter")
    assert not isinstance(target.model, PeftModel) and target.scored.merged
    assert (target.model(IDS).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert target.scored.merge_difference is not None and 0 < target.scored.merge_difference < 1e-4
    assert f"at most {target.scored.merge_difference:.1g}" in caplog.text


def test_the_difference_is_the_largest_in_log_probabilities(tiny_model: Path) -> None:
    """Of the whole vocabulary, against both models computed here."""
    base = load_model(str(tiny_model), dtype="float32")
    model = adapted(base, "q_proj")
    text = "true or false?"
    ids = torch.tensor([base.tokenizer(text).input_ids])
    before = torch.log_softmax(model(ids).logits[0], dim=-1).detach()
    after = torch.log_softmax(
        adapted(load_model(str(tiny_model), dtype="float32"), "q_proj").merge_and_unload()(ids).logits[0], -1
    )
    _, difference = merge(model, base.tokenizer, [text])
    assert difference == pytest.approx((before - after).abs().max().item(), abs=3e-7)


def test_a_merge_that_changes_the_answers_is_an_error(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_model(str(tiny_model), dtype="float32")
    model = adapted(base, "q_proj")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    whole = type(layer).merge

    def half(self: Any, *arguments: Any, **keywords: Any) -> None:
        before = self.base_layer.weight.detach().clone()
        whole(self, *arguments, **keywords)
        self.base_layer.weight.data.lerp_(before, 0.5)

    monkeypatch.setattr(type(layer), "merge", half)
    with pytest.raises(DoratuneError, match="by more than rounding") as caught:
        merge(model, base.tokenizer, ["is it true?"])
    assert caught.value.exit_code == 1


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed but")
def test_what_peft_cannot_merge_is_kept_apart(tiny_model: Path) -> None:
    """And is whole afterwards: a merge that fails in the middle would leave a part merged."""
    base = load_model(str(tiny_model), dtype="float32")
    config = LilyConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4)
    model: Any = get_peft_model(base.model, config).eval()
    assert "not supported for Lily" in str(merge_obstacle(base, model))
    base = load_model(str(tiny_model), dtype="float32")
    base.model.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(64))
    model = adapted(base, "q_proj", use_dora=False, lora_bias=True)
    wanted = model(IDS).logits
    assert "layers.1.self_attn.q_proj: Impossible to merge" in str(merge_obstacle(base, model))
    assert model(IDS).logits.equal(wanted)


def test_a_method_that_merges_into_nothing_is_kept_apart(tiny_model: Path) -> None:
    base = load_model(str(tiny_model), dtype="float32")
    model = adapted(base, "q_proj")
    assert merge_obstacle(base, model, "base") is None
    assert "merges into nothing" in str(merge_obstacle(base, model, "nothing"))


def test_a_base_that_would_round_is_left_alone(tiny_model: Path) -> None:
    base = load_model(str(tiny_model), dtype="bfloat16")
    obstacle = merge_obstacle(base, adapted(base, "q_proj"))
    assert obstacle is not None and "bfloat16" in obstacle
    quantised = load_model(str(tiny_model), dtype="float32")
    setattr(quantised.model, "is_quantized", True)  # noqa: B010
    obstacle = merge_obstacle(quantised, adapted(quantised, "q_proj"))
    assert obstacle is not None and "quantised" in obstacle
