"""PEFT's embedding on the engine against the same layer on PEFT's path and against float64."""

import copy

import pytest
import torch
from parity import (
    STATES,
    adapted,
    assert_compiles_to_one_graph,
    assert_same,
    assert_same_dtypes,
    assert_saves_the_same,
    assert_state,
    assert_trains_the_same,
    assert_unloads_the_same,
    count_peft_forwards,
    kept_bytes,
    layer_of,
    on_engine,
    randomize_all,
    run,
)
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Embedding
from torch import nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

import doratune

# What PEFT says of an embedding whose head is tied to it; that is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")

VOCABULARY, WIDTH = 17, 12
IDS = torch.tensor([[1, 2, 2, 16], [0, 5, 1, 3]])

LAYERS = {
    "plain": lambda: nn.Embedding(VOCABULARY, WIDTH),
    "padding_idx": lambda: nn.Embedding(VOCABULARY, WIDTH, padding_idx=2),
    "scale_grad_by_freq": lambda: nn.Embedding(VOCABULARY, WIDTH, scale_grad_by_freq=True),
    "scaled by a buffer": lambda: Gemma3TextScaledWordEmbedding(VOCABULARY, WIDTH, 0, embed_scale=WIDTH**0.5),
    "scaled by a number": lambda: BartScaledWordEmbedding(VOCABULARY, WIDTH, 0, embed_scale=WIDTH**0.5),
}


@pytest.fixture(autouse=True)
def peft_forwards(monkeypatch):
    """See ``count_peft_forwards``."""
    return count_peft_forwards(monkeypatch, Embedding)


def make(name="plain", **config):
    return adapted(LAYERS[name](), **config)


def truth_of(stock, ids):
    """The layer by its formula in float64."""
    model = copy.deepcopy(stock).double()
    layer, consumer = layer_of(model), model.base_model.model.consumer
    base, scaling = layer.base_layer, layer.scaling["default"]
    A, B = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    scale = torch.as_tensor(getattr(layer_of(stock).base_layer, "embed_scale", 1.0)).double()
    g = 1.0
    if layer.use_dora["default"]:
        n = (base.weight.T + scaling * B @ A).norm(dim=1).detach()
        g = torch.where(n == 0, 0, layer.lora_magnitude_vector["default"].weight / torch.where(n == 0, 1, n))

    def call(ids):
        h = embedding(ids, A.T, base.padding_idx, scale_grad_by_freq=base.scale_grad_by_freq)
        return consumer(g * (base.weight[ids] + scaling * h @ B.T) * scale)

    return run(model, ids, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_peft_and_float64(peft_forwards, name, use_dora, dtype):
    stock = make(name, dtype=dtype, use_dora=use_dora)
    expected = run(stock, IDS)
    peft_forwards.clear()
    actual = run(on_engine(stock), IDS)
    assert peft_forwards == []
    assert_same_dtypes(actual, expected)
    assert_same("peft", dtype, actual, expected)
    assert_same("gradient", dtype, actual, truth_of(stock, IDS))


@pytest.mark.parametrize("ids", [IDS[0], IDS[0, 0], IDS[:, :0], IDS.int(), IDS.T, IDS.view(2, 2, 2)])
def test_every_shape_of_ids(ids):
    stock = make()
    assert_same("peft", torch.float32, run(on_engine(stock), ids), run(stock, ids))


@pytest.mark.parametrize("form", ["peft", "adapter"])
@pytest.mark.parametrize("use_dora", [True, False])
def test_no_dropout_as_in_peft(use_dora, form):
    stock = make(use_dora=use_dora, lora_dropout=0.4)
    engine = on_engine(stock)
    doratune.enable(engine, dropout=form)
    assert_same("peft", torch.float32, run(engine, IDS), run(stock, IDS))


@pytest.mark.parametrize("use_dora", [True, False])
def test_autocast(use_dora):
    stock = make(use_dora=use_dora)
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(stock, IDS)
        actual = run(on_engine(stock), IDS)
    assert_same_dtypes(actual, expected)
    assert_same("peft", torch.bfloat16, actual, expected)
    assert_same("gradient", torch.float32, actual, truth_of(stock, IDS))


def test_zero_rows_are_finite_where_peft_is_not():
    stock = make()
    layer = layer_of(stock)
    with torch.no_grad():
        layer.base_layer.weight[:, 3] = 0
        layer.lora_embedding_B["default"][3] = 0
    assert_same("gradient", torch.float32, run(on_engine(stock), IDS), truth_of(stock, IDS))
    assert not stock(IDS).isfinite().all()


CONSUMERS = {
    "keeps": lambda y: y * y,
    "lets go": lambda y: y * 2,
    "in place": lambda y: y.add_(3).square(),
    "in another order": lambda y: y.transpose(1, 2).square(),
    "expanded": lambda y: y.sum().expand(3),
}


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_any_use_of_the_output(consumer, use_dora):
    stock = make("scaled by a buffer", consumer=CONSUMERS[consumer], use_dora=use_dora)
    assert_same("gradient", torch.float32, run(on_engine(stock), IDS), truth_of(stock, IDS))


@pytest.mark.parametrize("state", STATES)
def test_every_state_gives_peft_s_result(peft_forwards, state):
    assert_state(state, make(), IDS, peft_forwards)


@pytest.mark.parametrize("which", ["weight", "A", "B"])
def test_never_stale(which):
    stock = make()
    engine = on_engine(stock)
    engine(IDS)
    for model in (stock, engine):
        layer = layer_of(model)
        name = f"lora_embedding_{which}"
        tensor = layer.base_layer.weight if which == "weight" else getattr(layer, name)["default"]
        tensor.data[1].mul_(-3)
    assert_same("gradient", torch.float32, run(engine, IDS), truth_of(stock, IDS))


def test_merge_and_unload():
    assert_unloads_the_same(make(), IDS)


def test_checkpoint_files(tmp_path):
    assert_saves_the_same(make(), tmp_path)


@pytest.mark.parametrize("consumer", ["keeps", "lets go"])
@pytest.mark.parametrize("use_dora", [True, False])
def test_non_reentrant_checkpointing(consumer, use_dora):
    """The reentrant form is for layers whose input gets a gradient."""
    engine = on_engine(make(consumer=CONSUMERS[consumer], use_dora=use_dora))
    actual = run(engine, IDS, lambda ids: checkpoint(engine, ids, use_reentrant=False))
    assert_same("gradient", torch.float32, actual, run(engine, IDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("float32_adapter", [True, False])
@pytest.mark.parametrize("consumer", ["keeps", "lets go"])
@pytest.mark.parametrize("name", ["plain", "scaled by a buffer"])
def test_keeps_no_more_than_peft_s_lora(dtype, float32_adapter, consumer, name):
    lora, dora = (
        make(
            name,
            dtype=dtype,
            float32_adapter=float32_adapter,
            consumer=CONSUMERS[consumer],
            use_dora=use_dora,
        )
        for use_dora in (False, True)
    )
    ids = torch.randint(VOCABULARY, (4, 64))
    budget = kept_bytes(lora, ids)
    assert kept_bytes(on_engine(lora), ids) <= budget
    assert kept_bytes(on_engine(dora), ids) <= 1.02 * budget
    assert kept_bytes(dora, ids) > 1.02 * budget  # so that there is something to be saved


LEFT = {
    "max_norm": lambda: nn.Embedding(VOCABULARY, WIDTH, max_norm=0.5),
    "sparse gradients": lambda: nn.Embedding(VOCABULARY, WIDTH, sparse=True),
    "base layer Other": lambda: Other(VOCABULARY, WIDTH),
}


class Other(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 2


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("reason", LEFT)
def test_left_to_peft(reason, use_dora):
    stock = adapted(LEFT[reason](), use_dora=use_dora)
    twin = copy.deepcopy(stock)
    report = doratune.enable(twin)
    assert report.taken == {}
    (((_, why), count),) = report.left.items()
    assert (reason in why, count) == (True, 1)
    assert torch.equal(twin(IDS), stock(IDS))


def tiny_llama(**config):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )
    settings = LoraConfig(
        **{"r": 4, "use_dora": True, "target_modules": ["embed_tokens", "q_proj"], **config}
    )
    model = get_peft_model(model, settings)
    randomize_all(model)
    return model


class WithLoss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, labels=ids).loss


def id_batches():
    torch.manual_seed(3)
    return [(torch.randint(0, 32, (2, 6)),) for _ in range(3)]


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize("use_dora", [True, False])
def test_trains_as_in_peft_with_the_head_tied_to_it(use_dora, reentrant):
    def build():
        model = tiny_llama(use_dora=use_dora, lora_dropout=0.1)
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        llama = model.base_model.model
        assert llama.lm_head.weight is llama.model.embed_tokens.base_layer.weight
        return WithLoss(model.train())

    assert_trains_the_same(build, id_batches(), layers=2)


def test_trains_as_in_peft_with_an_adapted_head_tied_to_it():
    def build():
        return WithLoss(tiny_llama(ensure_weight_tying=True))

    assert_trains_the_same(build, id_batches(), layers=3)


@pytest.mark.parametrize("use_dora", [True, False])
def test_one_compiled_graph(use_dora):
    assert_compiles_to_one_graph(lambda: WithLoss(tiny_llama(use_dora=use_dora)), id_batches(), layers=2)
