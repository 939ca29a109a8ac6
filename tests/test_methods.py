"""Contract of every method; losses against numbers worked out by hand and other formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdtune.config import TrainConfig
from kdtune.errors import UserError
from kdtune.methods import METHODS, build_method
from kdtune.methods.at import at_loss, attention_map
from kdtune.methods.fitnets import feature_loss
from kdtune.methods.kd import kd_loss

STUDENT = [(4, 8, 8), (6, 4, 4), (8, 2, 2)]
TEACHER = [(8, 8, 8), (12, 4, 4), (16, 2, 2)]


def outputs(shapes, images=3, classes=5, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator).to(dtype)
    features = [torch.randn(images, *s, generator=generator).to(dtype) for s in shapes]
    return logits.requires_grad_(), [f.requires_grad_() for f in features]


def build(name, student=STUDENT, teacher=TEACHER, **config):
    return build_method(TrainConfig.check({"method": name, **config}), student, teacher)


LABELS = torch.tensor([0, 3, 2])


@pytest.mark.parametrize("name", METHODS)
class TestContract:
    def test_targets_have_a_row_an_image_and_need_no_gradient_of_the_teacher(self, name):
        method = build(name)
        with torch.no_grad():
            targets = method.targets(*outputs(TEACHER))
        assert all(len(t) == 3 and t.dtype == torch.float32 for t in targets.values())
        assert bool(targets) == method.uses_teacher

    def test_a_batchs_targets_are_those_of_its_images(self, name):
        method = build(name)
        logits, features = outputs(TEACHER)
        whole = method.targets(logits, features)
        part = method.targets(logits[1:2], [f[1:2] for f in features])
        assert all(torch.allclose(whole[k][1:2], part[k], atol=1e-6) for k in whole)

    def test_parts_are_scalars_that_add_up(self, name):
        method = build(name, alpha=0.7, beta=3.0)
        parts = method(*outputs(STUDENT, seed=1), method.targets(*outputs(TEACHER)), LABELS)
        assert all(p.dim() == 0 and p.dtype == torch.float32 for p in parts.values())
        weighted = sum(v for k, v in parts.items() if k.endswith("_weighted"))
        assert torch.allclose(parts["loss"], parts["classification"] + weighted)

    def test_the_loss_reaches_student_and_added_layers(self, name):
        method = build(name, alpha=0.5, beta=2.0)
        logits, features = outputs(STUDENT, seed=1)
        targets = method.targets(*outputs(TEACHER))
        method(logits, features, targets, LABELS)["loss"].backward()
        assert logits.grad is not None
        assert all(p.grad is not None for p in method.parameters())

    def test_without_a_teacher_the_loss_is_the_classification(self, name):
        method = build(name, teacher=None)
        logits, features = outputs(STUDENT)
        parts = method(logits, features, None, LABELS)
        assert parts["loss"] == F.cross_entropy(logits, LABELS)
        assert set(parts) == {"loss", "classification"}

    def test_zero_weights_are_the_exact_limit(self, name):
        method = build(name, alpha=0.0, beta=0.0)
        logits, features = outputs(STUDENT, seed=1)
        parts = method(logits, features, method.targets(*outputs(TEACHER)), LABELS)
        assert parts["loss"] == parts["classification"]

    def test_a_term_of_weight_zero_may_be_infinite(self, name):
        method = build(name, alpha=0.0, beta=0.0)
        student, teacher = outputs(STUDENT, seed=1), outputs(TEACHER)
        targets = {k: v * 1e30 for k, v in method.targets(*teacher).items()}
        parts = method(*student, targets, LABELS)
        assert torch.isfinite(parts["loss"])
        assert all(v == 0 for k, v in parts.items() if k.endswith("_weighted"))

    def test_half_precision_is_computed_in_float32(self, name):
        method = build(name, alpha=1.0, beta=1.0)
        half = dict(dtype=torch.bfloat16)
        student, teacher = outputs(STUDENT, seed=1, **half), outputs(TEACHER, **half)
        exact = method(
            student[0].float(),
            [f.float() for f in student[1]],
            method.targets(teacher[0].float(), [f.float() for f in teacher[1]]),
            LABELS,
        )
        parts = method(*student, method.targets(*teacher), LABELS)
        assert all(torch.equal(parts[k], exact[k]) for k in exact)

    def test_another_number_of_stages_than_the_teacher(self, name):
        method = build(name, student=STUDENT[1:], alpha=1.0, beta=1.0)
        student, teacher = outputs(STUDENT[1:], seed=1), outputs(TEACHER)
        assert torch.isfinite(method(*student, method.targets(*teacher), LABELS)["loss"])


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="no method 'fitnet'; did you mean 'fitnets'?"):
        build("fitnet")


class TestKD:
    def test_by_hand(self):
        # T = 2: softmax(teacher/2) = (3/4, 1/4), softmax(student/2) = (1/2, 1/2)
        teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
        expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
        assert kd_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)

    def test_mean_over_the_batch_not_over_the_classes(self):
        student, teacher = torch.randn(1, 50), torch.randn(1, 50)
        one = kd_loss(student, teacher, 4.0)
        assert torch.allclose(kd_loss(student.repeat(7, 1), teacher.repeat(7, 1), 4.0), one)

    @given(st.floats(0.5, 20), st.integers(0, 1000))
    @settings(max_examples=30, deadline=None)
    def test_against_numpy(self, temperature, seed):
        random = np.random.default_rng(seed)
        s, t = random.normal(size=(2, 4, 6)) * 3

        def softmax(x):
            e = np.exp(x / temperature - (x / temperature).max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)

        p, q = softmax(t), softmax(s)
        expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
        ours = kd_loss(torch.tensor(s), torch.tensor(t), temperature).item()
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert ours >= -1e-5

    def test_shapes_that_would_broadcast_are_refused(self):
        with pytest.raises(ValueError, match="differ in shape"):
            kd_loss(torch.zeros(4, 3), torch.zeros(1, 3), 1.0)


class TestAttentionTransfer:
    def test_map_by_hand(self):
        # two channels: (1, 2; 0, 2)² and (1, 0; 4, 2)² have the mean (1, 2, 8, 4), norm √85
        x = torch.tensor([[[[1.0, 2.0], [0.0, 2.0]], [[1.0, 0.0], [4.0, 2.0]]]])
        expected = torch.tensor([[1.0, 2.0, 8.0, 4.0]]) / math.sqrt(85)
        assert torch.allclose(attention_map(x), expected)

    def test_loss_by_hand(self):
        # maps (1, 0, 0, 0) and (0, 1, 0, 0) differ by 2 in squares; mean over 4 positions
        a, b = torch.eye(4)[:1], torch.eye(4)[1:2]
        assert at_loss(a, b).item() == 0.5

    @given(st.floats(0.01, 100), st.integers(0, 1000))
    @settings(max_examples=25, deadline=None)
    def test_scale_of_the_features_plays_no_part(self, scale, seed):
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(attention_map(x), attention_map(x * scale), atol=1e-5)

    @given(st.integers(0, 1000))
    @settings(max_examples=25, deadline=None)
    def test_bound(self, seed):
        generator = torch.Generator().manual_seed(seed)
        a, b = (attention_map(torch.randn(3, 2, 4, 4, generator=generator)) for _ in range(2))
        assert 0 <= at_loss(a, b) <= 2 / 16 + 1e-6

    def test_large_half_precision_features_do_not_overflow(self):
        x = 300 * torch.ones(1, 8, 4, 4, dtype=torch.float16)
        assert torch.allclose(attention_map(x), torch.full((1, 16), 0.25))

    def test_zeros_stay_zeros(self):
        assert attention_map(torch.zeros(1, 2, 2, 2)).eq(0).all()

    def test_sum_over_stages_paired_from_the_last(self):
        method = build("at", student=STUDENT[1:])
        (s, sf), (t, tf) = outputs(STUDENT[1:], seed=1), outputs(TEACHER)
        expected = sum(
            at_loss(attention_map(a), attention_map(b)) for a, b in zip(sf, tf[1:], strict=True)
        )
        assert torch.allclose(method(s, sf, method.targets(t, tf), LABELS)["at"], expected)

    @pytest.mark.parametrize(
        ("student", "teacher"), [((7, 5), (4, 4)), ((4, 4), (7, 5)), ((7, 4), (4, 7))]
    )
    def test_features_are_pooled_before_the_map(self, student, teacher):
        method = build("at", student=[(2, *student)], teacher=[(3, *teacher)])
        (s, sf), (t, tf) = outputs([(2, *student)], seed=1), outputs([(3, *teacher)])
        size = (min(student[0], teacher[0]), min(student[1], teacher[1]))
        expected = at_loss(
            attention_map(F.adaptive_avg_pool2d(sf[0], size)),
            attention_map(F.adaptive_avg_pool2d(tf[0], size)),
        )
        assert torch.allclose(method(s, sf, method.targets(t, tf), LABELS)["at"], expected)

    def test_maps_of_one_position_are_left_out_or_refused(self):
        assert build(
            "at", student=[(4, 2, 2), (8, 1, 1)], teacher=[(4, 2, 2), (8, 1, 1)]
        ).pairs == [(-2, (2, 2))]
        with pytest.raises(UserError, match="nothing to compare"):
            build("at", student=[(8, 1, 1)], teacher=[(8, 4, 4)])

    def test_targets_of_other_shape_are_refused(self):
        method = build("at")
        targets = method.targets(*outputs(TEACHER, images=1))
        with pytest.raises(ValueError, match="differ in shape"):
            method(*outputs(STUDENT), targets, LABELS)


class TestFitNets:
    def test_loss_by_hand(self):
        assert feature_loss(torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 3.0)).item() == 9.0

    def test_no_regressor_where_channels_agree(self):
        method = build("fitnets", student=TEACHER)
        assert list(method.parameters()) == []
        (s, sf), (t, tf) = outputs(TEACHER, seed=1), outputs(TEACHER)
        parts = method(s, sf, method.targets(t, tf), LABELS)
        assert torch.allclose(parts["feature"], ((sf[-1] - tf[-1]) ** 2).mean())

    def test_regressor_is_a_convolution_with_batch_norm(self):
        method = build("fitnets")
        (s, sf), (t, tf) = outputs(STUDENT, seed=1), outputs(TEACHER)
        weight = method.regressor.linear.weight
        mapped = torch.einsum("bchw,dc->bdhw", sf[-1], weight)
        normed = (mapped - mapped.mean((0, 2, 3), keepdim=True)) / torch.sqrt(
            mapped.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
        )
        parts = method(s, sf, method.targets(t, tf), LABELS)
        assert torch.allclose(parts["feature"], ((normed - tf[-1]) ** 2).mean(), atol=1e-5)

    @pytest.mark.parametrize("layer", [0, 1, -1])
    def test_the_hint_layer_is_the_one_asked_for(self, layer):
        method = build("fitnets", hint_layer=layer)
        assert method.targets(*outputs(TEACHER))[method.hint].shape[2] == TEACHER[layer][0]

    @pytest.mark.parametrize(("student", "teacher"), [((7, 5), (4, 4)), ((4, 4), (7, 5))])
    def test_the_larger_map_is_pooled(self, student, teacher):
        method = build("fitnets", student=[(3, *student)], teacher=[(3, *teacher)])
        (s, sf), (t, tf) = outputs([(3, *student)], seed=1), outputs([(3, *teacher)])
        pooled = [F.adaptive_avg_pool2d(f[0], (4, 4)) for f in (sf, tf)]
        parts = method(s, sf, method.targets(t, tf), LABELS)
        assert torch.allclose(parts["feature"], ((pooled[0] - pooled[1]) ** 2).mean())

    def test_first_stage_is_the_hint_alone(self):
        method = build("fitnets", hint_epochs=2, epochs=4, beta=0.0, hint_layer=0)
        logits, features = outputs(STUDENT, seed=1)
        targets = method.targets(*outputs(TEACHER))
        method.epoch = 2
        parts = method(logits, features, targets, LABELS)
        assert parts["loss"] == parts["feature"]
        parts["loss"].backward()
        assert logits.grad is None and features[1].grad is None and features[0].grad is not None
        method.epoch = 3
        parts = method(logits, features, targets, LABELS)
        assert torch.allclose(parts["loss"], parts["classification"] + parts["kd_weighted"])

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"hint_layer": 3}, "hint_layer 3 does not exist: it must lie between -3 and 2"),
            ({"hint_epochs": 1, "teacher": None}, "hint_epochs needs a teacher"),
        ],
    )
    def test_impossible_hints_are_refused(self, settings, sentence):
        with pytest.raises(UserError, match=sentence):
            build("fitnets", **settings)
