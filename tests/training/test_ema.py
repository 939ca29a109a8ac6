"""Averages of weights."""

import pytest
import torch

from kdtune.models import build_model
from kdtune.training.ema import ModelEma


def test_an_average_that_was_evaluated_follows_its_weights():
    """Some layers keep what they computed from the weights of an earlier evaluation."""
    pytest.importorskip("timm")
    network = build_model("timm:levit_128s", 5, 64)
    ema = ModelEma(network, 0.5)
    images = torch.rand(2, 3, 64, 64)
    for _ in range(2):
        ema.start_epoch()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "attention_bias" in name:
                    parameter.normal_(std=5)
            ema.update()
            ema.steps += 1
            fresh = build_model("timm:levit_128s", 5, 64).eval()
            fresh.load_state_dict(ema.model.state_dict())
            assert torch.equal(ema.model(images)[0], fresh(images)[0])


def test_a_network_without_counters_has_an_average_too():
    network = torch.nn.Linear(2, 1)
    ema = ModelEma(network, 0.5)
    before = network.weight.detach().clone()
    ema.start_epoch()
    with torch.no_grad():
        network.weight += 1.0
    ema.update()  # the decay begins at 1 / 10
    assert torch.allclose(ema.model.weight, before + 0.9)


def test_weights_that_moved_since_are_followed():
    """Another memory format gives a kernel of one pixel and one channel new memory."""
    network = torch.nn.Conv2d(1, 4, 1)
    ema = ModelEma(network, 0.5)
    network.weight.data = network.weight.detach().clone()
    ema.model.to(memory_format=torch.channels_last)
    ema.start_epoch()
    with torch.no_grad():
        network.weight += 1.0
        before = ema.model.weight.clone()
    ema.update()
    assert not torch.equal(ema.model.weight, before)
