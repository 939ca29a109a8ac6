"""Optimizers and schedules are torch's."""

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.training.optimizer import build_optimizer, learning_rate


def make_config(**settings):
    return TrainConfig.parse({"method": "student", "lr": 0.1, "epochs": 10, **settings})


def torch_rates(make, warmup=0, epochs=10):
    """The rates of torch's scheduler, stepped once an epoch, after its linear warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    parts = [make(optimizer)]
    if warmup:
        rise = schedulers.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        parts = [schedulers.SequentialLR(optimizer, [rise, *parts], [warmup])]
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        parts[0].step()
    return rates


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("step", lambda o: schedulers.StepLR(o, 2, 0.5)),
        ("cosine", lambda o: schedulers.CosineAnnealingLR(o, T_max=10)),
        ("constant", lambda o: schedulers.ConstantLR(o, 1.0)),
    ],
)
def test_learning_rates_are_those_of_torch(name, make, warmup):
    epochs = 10 + warmup
    config = make_config(
        lr_scheduler=name, warmup_epochs=warmup, step_size=2, gamma=0.5, epochs=epochs
    )
    rates = [learning_rate(config, epoch) for epoch in range(1, epochs + 1)]
    assert rates == pytest.approx(torch_rates(make, warmup, epochs))


def test_one_cycle_is_torchs_in_the_middle_of_each_epoch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    steps = 1000
    cycle = schedulers.OneCycleLR(optimizer, 0.1, total_steps=8 * steps)
    by_step = []
    for _ in range(8 * steps):
        by_step.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(by_step) < 8 * steps:
            cycle.step()
    config = make_config(lr_scheduler="one_cycle", epochs=8)
    rates = [learning_rate(config, epoch) for epoch in range(1, 9)]
    assert rates == pytest.approx(by_step[steps // 2 :: steps], rel=5e-3)
    assert learning_rate(make_config(lr_scheduler="one_cycle", epochs=1), 1) > 0.05


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({}, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.02)),
        ({"nesterov": True}, lambda p: torch.optim.SGD(p, 0.1, 0.9, 0, 0.02, nesterov=True)),
        (
            {"optimizer": "adamw", "momentum": 0.8},
            lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.999), weight_decay=0.02),
        ),
    ],
)
def test_steps_are_those_of_torch(settings, make):
    gradients = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    ends = []
    for build in (lambda p: build_optimizer(make_config(weight_decay=0.02, **settings), p), make):
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = build([parameter])
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        ends.append(parameter.detach())
    assert torch.allclose(*ends, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0."),
        ({"warmup_epochs": 10}, r"warmup_epochs \(10\) must leave some of the 10 epochs."),
        ({"lr_scheduler": "one_cycle", "warmup_epochs": 1}, "one_cycle warms up by itself"),
        (
            {"optimizer": "adamw", "lr": 0.3},
            "lr 0.3 is one of sgd, and too large for adamw: fix it",
        ),
        ({"optimizer": "adam"}, "optimizer cannot be 'adam'"),
    ],
)
def test_settings_that_do_not_fit_together_are_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        make_config(**settings)
