"""Wrong arguments end with one clear error, not with PyTorch's."""

import pytest
import torch
from layers import random_layer

from doratune.errors import InputError
from doratune.functional import dora_row_norm

CHANGES = [
    ("x", torch.ones(7, 47), r"x has the wrong shape\n.*\n  got: \(7, 47\)"),
    ("x", torch.ones(()), "x has the wrong shape"),
    ("x", torch.ones(7, 48, dtype=torch.int64), "x has an unsupported dtype"),
    (
        "bias",
        torch.ones(40).to(torch.float8_e4m3fn),
        r"bias has an unsupported dtype.*\n.*\n  got: torch.float8",
    ),
    ("x", torch.ones(7, 48, dtype=torch.bfloat16), "x and W differ in dtype"),
    ("x", torch.ones(7, 48, device="meta"), "x is not on W's device"),
    ("W", torch.ones(40, 48, 1), "W is not a matrix"),
    ("W", torch.ones(40, 48, requires_grad=True), "W requires a gradient"),
    ("A", torch.ones(4, 47), "A has the wrong shape"),
    ("A", torch.ones(()), "A has the wrong shape"),
    ("B", torch.ones(40, 5), r"B has the wrong shape\n.*\n.*\n  expected: \(d_out, r\) = \(40, 4\)"),
    ("m", torch.ones(40, 1), "m has the wrong shape"),
    ("bias", torch.ones(48), "bias has the wrong shape"),
    ("scaling", torch.tensor(2.0), "scaling is not a number"),
]


@pytest.mark.parametrize(("name", "value", "message"), CHANGES)
def test_dora_linear(name, value, message):
    layer = random_layer()
    setattr(layer, name, value)
    with pytest.raises(InputError, match=message):
        layer.run()


@pytest.mark.parametrize("name", ["x_dropped", "norm"])
def test_optional_arguments(name):
    with pytest.raises(InputError, match=f"{name} has the wrong shape"):
        random_layer().run(**{name: torch.ones(3)})


def test_dora_row_norm():
    layer = random_layer()
    with pytest.raises(InputError, match="B has the wrong shape"):
        dora_row_norm(layer.W, layer.A, layer.B.T, 2.0)
    with pytest.raises(InputError, match="weight_norm_sq has the wrong shape"):
        dora_row_norm(layer.W, layer.A, layer.B, 2.0, torch.ones(3))


def test_an_unknown_dropout_form():
    with pytest.raises(InputError, match="unknown dropout form"):
        random_layer().run(dropout="input")


def test_a_trainable_weight_is_fine_where_nothing_is_trained():
    layer = random_layer()
    frozen = layer.run()
    layer.W.requires_grad_()
    with torch.no_grad():
        assert torch.equal(layer.run(), frozen)
