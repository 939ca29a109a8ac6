"""Scales of terms: what they are by hand, on what they depend, and what they leave alone."""

import pytest
import torch
from small_runs import IMAGE_SIZE, make_epoch_data, small_config
from torch.nn import functional as F

from kdtune.data.folders import find_images
from kdtune.methods import METHODS
from kdtune.methods.kd import LogitMethod
from kdtune.training.loop import fit
from kdtune.training.loss_scales import LossScales
from kdtune.training.teacher import load_teacher


@pytest.fixture(scope="module")
def data(folder):
    return find_images(str(folder))


@pytest.fixture
def teacher(teacher_file):
    return load_teacher(teacher_file)


@pytest.fixture
def measure(data, teacher, folder):
    def scales_of(method, seed=0, **settings):
        config = small_config(folder, method=method, **settings)
        return LossScales(data, IMAGE_SIZE, teacher, seed).measure(config)

    return scales_of


class Known(LogitMethod):
    """A method whose terms are multiples of its classification loss."""

    alpha_factor, beta_factor, constant = 3.0, 0.25, 0.0

    def forward(self, logits, features, targets, labels):
        classification = F.cross_entropy(logits, labels)
        factor = 1 + self.config.alpha * self.alpha_factor + self.config.beta * self.beta_factor
        loss = factor * classification + self.constant
        return {"loss": loss, "classification": classification}


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(METHODS, "known", Known)
    return monkeypatch


def test_a_scale_is_the_term_over_the_classification_loss(known, measure):
    assert measure("known") == {"alpha": 3.0, "beta": 0.25}
    known.setattr(Known, "alpha_factor", 4e-6)  # float32 has seven digits
    assert measure("known") == {"alpha": 4e-6, "beta": 0.25}


def test_weights_and_further_parts_of_the_loss_do_not_matter(known, measure):
    known.setattr(Known, "constant", 7.0)
    assert measure("known", alpha=5.0, beta=1e3, lr=1.0) == {"alpha": 3.0, "beta": 0.25}


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_term_that_is_not_above_0_has_no_scale(known, measure, factor):
    known.setattr(Known, "beta_factor", factor)
    scales = measure("known")
    assert "beta" not in scales
    if factor in (0.0, -1.0):
        assert scales == {"alpha": 3.0}


@pytest.mark.parametrize("method", ["kd", "dkd", "fitnets", "vid"])
def test_the_scales_are_those_of_the_first_steps(method, measure, data, teacher, folder):
    settings = {"temperature": 2.0, "alpha": 1.0, "beta": 1.0}
    scales = measure(method, **settings)
    config = small_config(folder, method=method, lr=1e-12, epochs=1, seed=5, **settings)
    batches = make_epoch_data(config, data)
    [epoch] = fit(config, batches.train_batches, None, num_classes=10, teacher=teacher)
    parts = {k: v for k, v in epoch.losses.items() if not k.endswith("_weighted")}
    classification = parts.pop("classification")
    weights = ["alpha"] if method == "kd" else ["alpha", "beta"]
    assert list(scales) == weights and len(parts) == len(weights)
    for weight, part in zip(weights, parts.values(), strict=True):
        assert scales[weight] == pytest.approx(part / classification, rel=0.3)


def test_the_same_seed_gives_the_same_scales_and_disturbs_nothing(measure, teacher, data):
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), [t.clone() for t in teacher.state_dict().values()]
    torch.set_num_threads(2)
    first = measure("fitnets")
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), before[0])
    after = teacher.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(before[1], after, strict=True))
    assert measure("fitnets") == first != measure("fitnets", seed=1)


def test_they_depend_on_the_settings_of_the_run(measure):
    base = measure("fitnets")
    assert measure("fitnets", temperature=8.0)["alpha"] > base["alpha"]
    assert measure("fitnets", temperature=8.0)["beta"] == base["beta"]
    assert measure("fitnets", hint_layer=0)["beta"] != base["beta"]
    assert measure("fitnets", batch_size=8) != base
    assert measure("fitnets", model="ResNet18") != base


def test_a_hint_stage_and_the_optimizer_do_not_change_them(measure):
    base = measure("fitnets")
    assert measure("fitnets", hint_epochs=1) == base
    assert measure("fitnets", lr=0.5, weight_decay=0.0, epochs=9) == base


def test_small_data_give_one_smaller_batch(measure):
    assert measure("at", batch_size=1024).keys() == {"alpha", "beta"}
