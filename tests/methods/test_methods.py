"""Contract of every method; losses against numbers worked out by hand and other formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods import METHODS, build_method
from kdtune.methods.at import at_loss, at_paper_loss, attention_map
from kdtune.methods.checks import dry_run
from kdtune.methods.dist import correlation_distance, dist_loss
from kdtune.methods.dkd import dkd_losses
from kdtune.methods.fitnets import feature_loss
from kdtune.methods.kd import kd_loss
from kdtune.methods.pkt import neighbour_probabilities, pkt_loss
from kdtune.methods.rkd import distances_and_angles, rkd_loss
from kdtune.methods.sp import similarity_matrix, sp_loss
from kdtune.methods.vid import vid_loss
from kdtune.models import build_model, probe_stage_shapes
from kdtune.models.library import LIBRARIES

STUDENT = [(4, 8, 8), (6, 4, 4), (8, 2, 2)]
TEACHER = [(8, 8, 8), (12, 4, 4), (16, 2, 2)]


def outputs(shapes, images=3, classes=5, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator).to(dtype)
    features = [torch.randn(images, *s, generator=generator).to(dtype) for s in shapes]
    return logits.requires_grad_(), [f.requires_grad_() for f in features]


def build(name, student=STUDENT, teacher=TEACHER, **config):
    return build_method(TrainConfig.parse({"method": name, **config}), student, teacher)


LABELS = torch.tensor([0, 3, 2])


def embeddings(images=5, channels=7, seed=0):
    return torch.randn(images, channels, generator=torch.Generator().manual_seed(seed))


def rotation(size, seed=0):
    return torch.linalg.qr(embeddings(size, size, seed))[0]


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


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

    @pytest.mark.parametrize("images", [1, 2, 3])
    def test_a_student_that_is_its_teacher_has_finite_gradients(self, name, images):
        method = build(name, student=TEACHER, alpha=1.0, beta=100.0)
        logits, features = outputs(TEACHER, images)
        parts = method(
            logits, features, method.targets(logits.detach(), features), LABELS[:images]
        )
        assert all(torch.isfinite(p) for p in parts.values())
        parts["loss"].backward()
        given = [t.grad for t in (logits, *features, *method.parameters()) if t.grad is not None]
        assert given and all(torch.isfinite(g).all() for g in given)

    @pytest.mark.parametrize("kind", ["zero", "alike", "large"])
    def test_strange_batches_have_finite_gradients(self, name, kind):
        """A dead student, images that all coincide, logits of a teacher that is quite sure."""
        method = build(name, alpha=1.0, beta=100.0)
        (logits, features), (told, maps) = outputs(STUDENT, seed=1), outputs(TEACHER)
        change = {
            "zero": lambda x: torch.zeros_like(x),
            "alike": lambda x: x[:1].repeat_interleave(3, 0),
            "large": lambda x: 300 * x,
        }[kind]
        student = [change(x).detach().requires_grad_() for x in (logits, *features)]
        teacher = [300 * x if kind == "large" else x for x in (told, *maps)]
        with torch.no_grad():
            targets = method.targets(teacher[0], teacher[1:])
        parts = method(student[0], student[1:], targets, LABELS)
        parts["loss"].backward()
        given = [t.grad for t in (*student, *method.parameters()) if t.grad is not None]
        assert all(torch.isfinite(x).all() and x.abs().max() < 1e9 for x in given)
        assert all(torch.isfinite(p) for p in parts.values())

    def test_another_number_of_stages_than_the_teacher(self, name):
        method = build(name, student=STUDENT[1:], alpha=1.0, beta=1.0)
        student, teacher = outputs(STUDENT[1:], seed=1), outputs(TEACHER)
        assert torch.isfinite(method(*student, method.targets(*teacher), LABELS)["loss"])


def make_network(kind):
    """A network of each family for images of 32 px, as small as it gets."""
    torch.manual_seed(0)
    if kind == "MultiBranchNet":
        return build_model(kind, 5, 32)
    timm = pytest.importorskip("timm")
    small = {"num_classes": 5, "img_size": 32}
    options = {
        "vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}),
        "swin": (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1, 1), "embed_dim": 16, "num_heads": (2, 2, 2)},
        ),
    }
    name, shape = options[kind]
    network = timm.create_model(name, **small, **shape)
    return LIBRARIES["timm"].add_maps(network, name, 32)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("MultiBranchNet", "vit"), ("vit", "swin"), ("swin", "MultiBranchNet")],
)
@pytest.mark.parametrize("name", METHODS)
def test_networks_of_all_families_learn_from_one_another(name, student, teacher):
    networks = make_network(student), make_network(teacher).eval()
    shapes = [probe_stage_shapes(network, 32) for network in networks]
    method = build(name, *shapes, alpha=0.5, beta=2.0)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        targets = method.targets(*networks[1](images))
    dry_run(name, method, networks[0](images), networks[1](images))
    parts = method(*networks[0](images), targets, LABELS)
    assert torch.isfinite(parts["loss"])
    parts["loss"].backward()
    gradients = {key: p.grad for key, p in networks[0].named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert all(p.grad is not None for p in method.parameters())


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
        s, t = np.random.default_rng(seed).normal(size=(2, 4, 6)) * 3
        p, q = softmax(t / temperature), softmax(s / temperature)
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

    def test_paper_loss_by_hand(self):
        # maps (1, 0, 0, 0) and (0, 1, 0, 0) are √2 apart, and two that agree 0: half of the mean
        a, b = torch.eye(4)[:2], torch.eye(4)[[1, 1]]
        assert at_paper_loss(a, b).item() == pytest.approx(math.sqrt(2) / 4)

    def test_paper_form_against_numpy(self):
        """Equation 2: beta / 2 times the sum of norms over stages, of every image."""
        method = build("at_paper", beta=0.1)
        (s, sf), (t, tf) = outputs(STUDENT, seed=1), outputs(TEACHER)
        expected = 0.0
        for own, other in zip(sf, tf, strict=True):
            maps = [(f.detach().numpy() ** 2).sum(1).reshape(3, -1) for f in (own, other)]
            a, b = (q / np.sqrt((q**2).sum(1, keepdims=True)) for q in maps)
            expected += (
                0.1 / 2 * np.mean([np.linalg.norm(x - y) for x, y in zip(a, b, strict=True)])
            )
        parts = method(s, sf, method.targets(t, tf), LABELS)
        assert parts["at_weighted"].item() == pytest.approx(expected, rel=1e-5)

    def test_both_forms_share_their_targets(self):
        of_code, of_paper = (build(n).targets(*outputs(TEACHER)) for n in ("at", "at_paper"))
        assert of_code.keys() == of_paper.keys()

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
        ).stage_pairs == [(-2, (2, 2))]
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
        assert method.targets(*outputs(TEACHER))[method.hint_name].shape[2] == TEACHER[layer][0]

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


class TestDKD:
    def test_by_hand(self):
        # T = 1, label 0: the teacher has (1/2, 1/4, 1/4), the student (1/3, 1/3, 1/3)
        teacher, student = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.zeros(1, 3)
        tckd, nckd = dkd_losses(student, teacher, torch.tensor([0]), 1.0)
        assert tckd.item() == pytest.approx(0.5 * math.log(1.5) + 0.5 * math.log(0.75), rel=1e-5)
        assert nckd.item() == pytest.approx(0.0, abs=1e-7)
        # label 1: the others are (2/3, 1/3) against (1/2, 1/2)
        _, nckd = dkd_losses(student, teacher, torch.tensor([1]), 1.0)
        expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
        assert nckd.item() == pytest.approx(expected, rel=1e-5)

    @given(st.floats(0.5, 20), st.integers(0, 1000))
    @settings(max_examples=30, deadline=None)
    def test_the_halves_make_kd(self, temperature, seed):
        s, t = np.random.default_rng(seed).normal(size=(2, 4, 6)) * 3
        labels = np.random.default_rng(seed).integers(6, size=4)
        tckd, nckd = dkd_losses(*map(torch.tensor, (s, t, labels)), temperature)
        of_others = 1 - softmax(t / temperature)[np.arange(4), labels]
        kd = (tckd + torch.tensor(of_others) * nckd).mean().item()
        exact = kd_loss(torch.tensor(s), torch.tensor(t), temperature).item()
        assert kd == pytest.approx(exact, rel=1e-3, abs=1e-4)

    def test_against_numpy(self):
        s, t = np.random.default_rng(1).normal(size=(2, 4, 6)) * 3
        labels = np.array([0, 5, 2, 2])
        tckd, nckd = (x.numpy() for x in dkd_losses(*map(torch.tensor, (s, t, labels)), 4.0))
        for i, label in enumerate(labels):
            p, q = softmax(t[[i]] / 4)[0], softmax(s[[i]] / 4)[0]
            two = [np.array([x[label], 1 - x[label]]) for x in (p, q)]
            rest = [np.delete(x, label) / (1 - x[label]) for x in (p, q)]
            for (a, b), found in ((two, tckd[i]), (rest, nckd[i])):
                assert found == pytest.approx(16 * (a * np.log(a / b)).sum(), rel=1e-4)

    def test_alpha_weighs_the_target_and_beta_the_others(self):
        (s, sf), (t, tf) = outputs(STUDENT, seed=1), outputs(TEACHER)
        method = build("dkd", alpha=2.0, beta=3.0)
        tckd, nckd = dkd_losses(s, t, LABELS, 4.0)
        loss = F.cross_entropy(s, LABELS) + 2 * tckd.mean() + 3 * nckd.mean()
        assert torch.allclose(method(s, sf, method.targets(t, tf), LABELS)["loss"], loss)

    def test_two_classes_have_no_others(self):
        _, nckd = dkd_losses(*torch.randn(2, 3, 2), torch.tensor([0, 1, 1]), 2.0)
        assert nckd.eq(0).all()


class TestDIST:
    def test_distance_by_hand(self):
        # (1, 2, 3) and (1, 3, 2): centred (−1, 0, 1) and (−1, 1, 0), ρ = 1/2; against itself 0
        u, v = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, 3, 2]])
        assert correlation_distance(u, v).item() == pytest.approx(0.5)
        assert correlation_distance(u, -u).item() == pytest.approx(2.0)

    @given(st.floats(0.01, 100), st.floats(-10, 10), st.integers(0, 1000))
    @settings(max_examples=25, deadline=None)
    def test_scale_and_shift_play_no_part(self, scale, shift, seed):
        u, v = embeddings(4, 6, seed), embeddings(4, 6, seed + 1)
        moved = correlation_distance(scale * u + shift, v)
        assert torch.allclose(moved, correlation_distance(u, v), atol=1e-3)

    @given(st.floats(1, 10), st.integers(0, 1000))
    @settings(max_examples=25, deadline=None)
    def test_against_numpy(self, temperature, seed):
        s, t = np.random.default_rng(seed).normal(size=(2, 4, 6)) * 3
        p, q = softmax(t / temperature), softmax(s / temperature)
        inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
        intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
        ours = dist_loss(torch.tensor(s), torch.tensor(t), temperature).item()
        assert ours == pytest.approx(temperature**2 * (inter + intra), rel=1e-3)

    def test_shapes_that_would_broadcast_are_refused(self):
        with pytest.raises(ValueError, match="differ in shape"):
            dist_loss(torch.zeros(4, 3), torch.zeros(1, 3), 1.0)


class TestVID:
    def test_by_hand(self):
        # ½·(3² / 4 + log 4) for one channel, ½·(1 + log 1) for the other
        mean, hint = torch.zeros(1, 1, 2), torch.tensor([[[3.0, 1.0]]])
        expected = (9 / 8 + math.log(2) + 0.5) / 2
        assert vid_loss(mean, torch.tensor([4.0, 1.0]), hint).item() == pytest.approx(expected)

    def test_the_variance_begins_at_five_and_learns(self):
        method = build("vid", beta=1.0)
        (s, sf), (t, tf) = outputs(STUDENT, seed=1), outputs(TEACHER)
        parts = method(s, sf, method.targets(t, tf), LABELS)
        a, _, b, _, c = method.regressor
        x = sf[-1].flatten(2).transpose(1, 2) @ a.weight.T
        mean = (x.relu() @ b.weight.T).relu() @ c.weight.T
        hint = tf[-1].flatten(2).transpose(1, 2)
        expected = ((mean - hint) ** 2 / 5 + math.log(5)).mean() / 2
        assert torch.allclose(parts["vid"], expected, atol=1e-5)
        parts["loss"].backward()
        assert method.raw_variance.grad.abs().min() > 0

    def test_the_best_variance_is_the_error(self):
        hint = embeddings(50, 3).unsqueeze(1) * torch.tensor([1.0, 2.0, 3.0])
        error = hint.pow(2).mean((0, 1))
        best = vid_loss(torch.zeros_like(hint), error, hint)
        assert all(vid_loss(torch.zeros_like(hint), error * f, hint) > best for f in (0.9, 1.1))

    def test_hints_are_those_of_fitnets(self):
        hints = [build(n).targets(*outputs(TEACHER)) for n in ("fitnets", "vid", "sp")]
        [name] = {name for hint in hints for name in hint if name != "logits"}
        assert all(torch.equal(hint[name], hints[0][name]) for hint in hints)


class TestSP:
    def test_by_hand(self):
        # images (1, 0) and (1, 1): G = (1, 1; 1, 2), rows by √2 and √5
        expected = torch.tensor([[1 / 2**0.5, 1 / 2**0.5], [1 / 5**0.5, 2 / 5**0.5]])
        found = similarity_matrix(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        assert torch.allclose(found, expected)
        assert sp_loss(found, torch.eye(2)).item() == pytest.approx(
            ((1 - 0.5**0.5) ** 2 + 0.5 + 0.2 + (1 - 2 / 5**0.5) ** 2) / 4
        )

    @given(st.integers(0, 1000), st.floats(0.01, 100))
    @settings(max_examples=25, deadline=None)
    def test_rotation_and_scale_play_no_part(self, seed, scale):
        x = embeddings(seed=seed)
        turned = scale * x @ rotation(7, seed)
        assert torch.allclose(similarity_matrix(turned), similarity_matrix(x), atol=1e-4)

    def test_against_numpy(self):
        method = build("sp")
        (s, sf), (t, tf) = outputs(STUDENT, seed=1), outputs(TEACHER)
        grams = []
        for f in (sf[-1], tf[-1]):
            q = f.detach().numpy().reshape(3, -1)
            gram = q @ q.T
            grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
        expected = np.linalg.norm(grams[0] - grams[1]) ** 2 / 9
        parts = method(s, sf, method.targets(t, tf), LABELS)
        assert parts["sp"].item() == pytest.approx(expected, rel=1e-4)


class TestRKD:
    def test_by_hand(self):
        # a right angle with the sides 3, 4 and 5, whose mean is 4
        points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        distances, angles = distances_and_angles(points)
        expected = torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4
        assert torch.allclose(distances, expected)
        assert angles[0, 1, 2].item() == pytest.approx(0, abs=1e-6)
        assert angles[1, 0, 2].item() == pytest.approx(3 / 5)
        assert angles[2, 0, 1].item() == pytest.approx(4 / 5)

    @given(st.integers(0, 1000), st.floats(0.01, 100))
    @settings(max_examples=25, deadline=None)
    def test_rotation_shift_and_scale_play_no_part(self, seed, scale):
        x = embeddings(seed=seed)
        turned = scale * (x @ rotation(7, seed) + embeddings(1, 7, seed + 1))
        assert rkd_loss(turned, x).item() == pytest.approx(0, abs=1e-6)

    def test_against_numpy(self):
        s, t = embeddings(4, 3), embeddings(4, 6, seed=1)

        def huber(a, b):
            d = abs(a - b)
            return d**2 / 2 if d < 1 else d - 0.5

        def distance(x, i, j):
            return np.linalg.norm(x[i] - x[j])

        def cosine(x, i, j, k):
            if j in (i, k):
                return 0.0
            return (x[i] - x[j]) @ (x[k] - x[j]) / distance(x, i, j) / distance(x, k, j)

        a, b = s.numpy(), t.numpy()
        pairs = [(i, j) for i in range(4) for j in range(4)]
        means = [np.mean([distance(x, i, j) for i, j in pairs if i != j]) for x in (a, b)]
        far = np.mean(
            [huber(distance(a, *p) / means[0], distance(b, *p) / means[1]) for p in pairs]
        )
        triplets = [(i, j, k) for i, j in pairs for k in range(4)]
        corner = np.mean([huber(cosine(a, *x), cosine(b, *x)) for x in triplets])
        assert rkd_loss(s, t).item() == pytest.approx(far + 2 * corner, rel=1e-4)


class TestPKT:
    def test_by_hand(self):
        # a right angle: K is 1 with itself, 1/2 with the other
        expected = torch.tensor([[2.0, 1.0], [1.0, 2.0]]) / 3
        assert torch.allclose(
            neighbour_probabilities(torch.tensor([[3.0, 0.0], [0.0, 5.0]])), expected
        )
        # opposite: 1 and 0
        opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
        assert torch.allclose(neighbour_probabilities(opposite), torch.eye(2))
        loss = pkt_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), opposite)
        assert loss.item() == pytest.approx(math.log(1.5) / 2, rel=1e-4)

    @given(st.integers(0, 1000), st.floats(0.01, 100))
    @settings(max_examples=25, deadline=None)
    def test_rotation_and_scale_play_no_part(self, seed, scale):
        x = embeddings(seed=seed)
        turned = scale * x @ rotation(7, seed)
        assert torch.allclose(
            neighbour_probabilities(turned), neighbour_probabilities(x), atol=1e-5
        )

    def test_against_numpy(self):
        s, t = embeddings(4, 3).numpy(), embeddings(4, 6, seed=1).numpy()
        own, others = [
            [[(1 + a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / 2 for b in x] for a in x]
            for x in (s, t)
        ]
        q, p = (np.array(x) / np.sum(x, axis=1, keepdims=True) for x in (own, others))
        ours = pkt_loss(torch.tensor(s), torch.tensor(t)).item()
        assert ours == pytest.approx((p * np.log(p / q)).mean(), rel=1e-3)
