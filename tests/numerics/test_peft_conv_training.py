"""Training a tiny convolutional network with PEFT and with the engine gives the same losses."""

import pytest
import torch
from parity import assert_compiles_to_one_graph, assert_trains_the_same, randomize_all
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")


class ConvNet(nn.Module):
    """A classifier of small images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.body = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.head = nn.Conv1d(8, 5, 1)
        self.reentrant = None

    def features(self, images):
        return self.body(nn.functional.silu(self.norm(self.stem(images)))).relu_()

    def forward(self, images, labels):
        if self.reentrant is None:
            features = self.features(images)
        else:
            features = checkpoint(self.features, images, use_reentrant=self.reentrant)
        return nn.functional.cross_entropy(self.head(features.flatten(2)).mean(dim=2), labels)


def conv_net(**config):
    torch.manual_seed(0)
    settings = LoraConfig(**{"r": 2, "use_dora": True, "target_modules": ["stem", "body", "head"], **config})
    model = get_peft_model(ConvNet(), settings)
    randomize_all(model)
    return model


def image_batches():
    torch.manual_seed(3)
    # Reentrant checkpointing needs an input with a gradient.
    return [(torch.randn(4, 3, 6, 6, requires_grad=True), torch.randint(0, 5, (4,))) for _ in range(3)]


@pytest.mark.parametrize(("dropout", "reentrant"), [(0.0, None), (0.1, None), (0.0, True), (0.0, False)])
@pytest.mark.parametrize("use_dora", [True, False])
def test_trains_as_in_peft(dropout, reentrant, use_dora):
    def build():
        model = conv_net(lora_dropout=dropout, use_dora=use_dora)
        model.base_model.model.reentrant = reentrant
        return model

    assert_trains_the_same(build, image_batches(), layers=3)


@pytest.mark.parametrize("use_dora", [True, False])
def test_one_compiled_graph(use_dora):
    assert_compiles_to_one_graph(lambda: conv_net(use_dora=use_dora), image_batches(), layers=3)
