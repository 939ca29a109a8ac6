"""The display of a single run: its step and times, by a clock of the test's."""

import time
from types import SimpleNamespace

import pytest
import torch

from kdtune.cli.run_display import RunDisplay
from kdtune.tuning.display.screen import Screen


@pytest.fixture
def clock():
    return SimpleNamespace(now=0.0)


def make_display(clock, epochs=4):
    return RunDisplay(epochs, Screen("quiet"), lambda: clock.now)


def test_the_display_says_where_a_run_is_and_how_long_it_takes(clock):
    display = make_display(clock)
    clock.now = 3.0
    assert display.summary() == "no training step yet; 3 s spent"
    display.on_step(1, 1, torch.tensor(0.5))
    clock.now = 8.0
    display.on_step(1, 7, torch.tensor(0.25))
    assert display.summary() == "epoch 1/4, step 7, loss 0.2500; 8 s spent; time left unknown"
    clock.now = 13.0  # ten seconds after the first step
    display.on_step(2, 1, torch.tensor(0.125))
    clock.now = 17.0
    assert display.summary() == "epoch 2/4, step 1, loss 0.1250; 17 s spent; about 26 s left"
    clock.now = 100.0
    assert display.summary().endswith("about 0 s left")
    assert display.render(24).plain == display.summary()


def test_a_resumed_run_counts_its_own_epochs(clock):
    display = make_display(clock, epochs=10)
    for epoch in (8, 9, 10):
        display.on_step(epoch, 1, torch.tensor(1.0))
        clock.now += 5.0
    clock.now -= 5.0
    assert display.summary().endswith("10 s spent; about 5 s left")


def test_the_loss_is_read_only_when_it_is_shown(clock):
    read = []
    display = make_display(clock)
    for step in range(1, 11):
        clock.now += 0.1
        loss = SimpleNamespace(item=lambda step=step: read.append(step) or 1.0)
        display.on_step(1, step, loss)
    assert read == [1, 6]


def test_the_screen_is_refreshed_whether_or_not_steps_come(monkeypatch, clock):
    refreshed = []
    display = make_display(clock)
    monkeypatch.setattr("kdtune.cli.run_display.REDRAW_SECONDS", 0.02)
    monkeypatch.setattr(display.screen, "refresh", lambda: refreshed.append(1))
    with display.shown():
        time.sleep(0.3)
    count = len(refreshed)
    time.sleep(0.1)
    assert 2 <= count == len(refreshed)
