"""Contract of every network, and what is particular to one."""

import pytest
import torch
import torchvision

from kdtune.errors import UserError
from kdtune.models import MODELS, build_model, feature_shapes
from kdtune.models.multibranch import ECA, eca_kernel_size


@pytest.mark.parametrize("size", [16, 33, 64])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_logits_and_a_map_a_stage(name, size):
    model = build_model(name, 7, size)
    logits, features = model(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 7)
    assert [tuple(f.shape[1:]) for f in features] == feature_shapes(model, size)
    sizes = [f.shape[2] for f in features]
    assert sizes == sorted(sizes, reverse=True)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["MultiBranchNet", "ResNet18", "ResNet50"])
def test_small_images_keep_their_size_in_the_first_stage(name):
    assert [feature_shapes(build_model(name, 2, size), size)[0][1] for size in (16, 32, 64)] == [
        16, 32, 16,
    ]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_finding_shapes_changes_nothing(name):
    model = build_model(name, 3, 16).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    feature_shapes(model, 16)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_the_global_seed_fixes_the_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model(name, 3, 16).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="There is no model 'ResNet81'; did you mean 'ResNet18'?"):
        build_model("ResNet81", 10, 32)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_torchvision_weights_load_and_give_torchvisions_logits(name):
    theirs = getattr(torchvision.models, name.lower())(num_classes=5).eval()
    ours = build_model(name, 5, 64).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images)[0], theirs(images), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "kernel"), [(8, 3), (16, 3), (64, 3), (128, 5), (512, 5), (2048, 7)]
)
def test_eca_kernel(channels, kernel):
    assert eca_kernel_size(channels) == kernel


def test_eca_gate_by_hand():
    eca = ECA(4)
    with torch.no_grad():
        eca.conv.weight.copy_(torch.tensor([[[1.0, 0.0, -1.0]]]))
    x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    # gate of channel c: sigmoid(mean of c-1 minus mean of c+1), zero-padded
    gate = torch.sigmoid(torch.tensor([-1.0, -2.0, -2.0, 2.0])).view(1, 4, 1, 1)
    assert torch.allclose(eca(x), x * gate)
