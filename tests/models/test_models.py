"""Contract of every network, and what is particular to one."""

import pytest
import torch
import torchvision

from kdtune.errors import UserError
from kdtune.models import MODELS, build_model, probe, probe_stage_shapes, require_model
from kdtune.models.feature_maps import find_stage_ends
from kdtune.models.library import TORCHVISION_OPTIONS
from kdtune.models.multibranch import ECA, eca_kernel_size

NAMED = [
    "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5", "torchvision:googlenet",
    "torchvision:densenet121", "timm:efficientnet_lite0",
]  # fmt: skip
"""A few of each library, of different make."""


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_logits_and_a_map_a_stage(name, size):
    model = build_model(name, 7, size)
    logits, features = model(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 7)
    assert [tuple(f.shape[1:]) for f in features] == probe_stage_shapes(model, size)
    sizes = [f.shape[2] for f in features]
    assert sizes == sorted(sizes, reverse=True)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["MultiBranchNet", "ResNet18", "ResNet50"])
def test_small_images_keep_their_size_in_the_first_stage(name):
    sizes = (16, 32, 64)
    heights = [probe_stage_shapes(build_model(name, 2, size), size)[0][1] for size in sizes]
    assert heights == [16, 32, 16]


def test_finding_shapes_changes_nothing():
    model = build_model("MultiBranchNet", 3, 16).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    probe_stage_shapes(model, 16)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["MultiBranchNet", "ResNet18"])
def test_the_global_seed_fixes_the_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model(name, 3, 16).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


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


def library_network(name, num_classes):
    library, _, own = name.partition(":")
    if library == "torchvision":
        options = {"weights": None, "num_classes": num_classes, **TORCHVISION_OPTIONS.get(own, {})}
        return torchvision.models.get_model(own, **options)
    return pytest.importorskip("timm").create_model(own, num_classes=num_classes)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_is_its_librarys_and_gives_a_map_a_stage(name):
    theirs, ours = library_network(name, 5), build_model(name, 5, 64)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits, features = probe(ours, images)
        assert torch.equal(logits, theirs.eval()(images))
    assert all(part.training for part in ours.modules())
    assert [f.shape[2:] for f in features] == [(s, s) for s in (32, 16, 8, 4, 2)]
    assert [tuple(f.shape[1:]) for f in features] == probe_stage_shapes(ours, 64)
    ours(images)[0].sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


TRANSFORMERS = {
    "torchvision:vit_b_16": [2] * 4,
    "torchvision:swin_t": [8, 4, 2, 1],
    "timm:test_vit": [2] * 4,
    "timm:deit_tiny_distilled_patch16_224": [2] * 4,
    "timm:vit_small_patch16_dinov3": [2] * 4,
    "timm:swin_tiny_patch4_window7_224": [8, 4, 2, 1],
    "timm:efficientformerv2_s0": [8, 4, 2, 1],
}
"""Transformers and hybrids, with the sides of their maps at 32 px."""


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_gives_a_square_map_a_stage(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    model = build_model(name, 5, 32)
    images = torch.rand(2, 3, 32, 32)
    logits, features = probe(model, images)
    assert logits.shape == (2, 5)
    assert [tuple(f.shape[2:]) for f in features] == [(s, s) for s in TRANSFORMERS[name]]
    sum(f.sum() for f in (model(images)[0], *model(images)[1])).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None]
    assert not without


def test_a_vits_maps_are_the_patches_of_its_blocks():
    timm = pytest.importorskip("timm")
    ours = build_model("timm:vit_small_patch14_reg4_dinov2", 5, 28)
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=5, img_size=28).eval()
    theirs.load_state_dict(ours.state_dict())
    outputs = {}
    for block in (2, 5, 8, 11):
        theirs.blocks[block].register_forward_hook(
            lambda module, inputs, output, block=block: outputs.update({block: output})
        )
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        logits, features = probe(ours, images)
        assert torch.equal(theirs(images), logits)
    for feature, tokens in zip(features, outputs.values(), strict=True):
        # a class token and four registers, then 2x2 patches row by row
        assert tokens.shape == (2, 9, 384)
        assert torch.equal(feature[:, :, 1, 0], tokens[:, 7])


@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_loaded_weights_replace_what_was_computed_from_earlier_ones(name):
    pytest.importorskip("timm")
    one, other = (build_model(f"timm:{name}", 5, 64).eval() for _ in range(2))
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if "attention_bias" in key:
                parameter.normal_(std=5)
        images = torch.rand(2, 3, 64, 64)
        one(images)  # keeps its biases, as always in eval mode
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(images)[0], other(images)[0])
    assert not one.training


@pytest.mark.parametrize("name", ["ResNet18", "timm:test_resnet"])
def test_layers_can_be_named_in_any_network(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    model = build_model(name, 5, 64, ["layer1.0", "layer3"])
    images = torch.rand(2, 3, 64, 64)
    logits, features = probe(model, images)
    assert logits.shape == (2, 5) and len(features) == 2
    assert [f.shape[2] for f in features] == [16, 4]
    assert model.state_dict().keys() == build_model(name, 5, 64).state_dict().keys()
    with pytest.raises(UserError, match=r"^A \w+ has no layer 'layer5'; did you mean 'layer\d'"):
        build_model(name, 5, 64, ["layer5"])


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("resnet50", ["relu", "layer1", "layer2", "layer3", "layer4"]),
        (
            "mobilenet_v3_small",
            ["features.0", "features.1", "features.3", "features.8", "features"],
        ),
        ("vgg11", ["features.1", "features.4", "features.9", "features.14", "features.19"]),
        ("squeezenet1_1", ["features.1", "features.4", "features.7", "features"]),
    ],
)
def test_stages_end_before_each_down_sampling(name, ends):
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, num_classes=2)
    found = find_stage_ends(network)
    assert found == [*ends, "features"] if name == "vgg11" else found == ends
    assert network.training


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("torchvision:swin_t", 66, "swin_t cannot be .*it cuts images into patches of 4 px"),
        ("torchvision:vit_b_16", 40, "vit_b_16 cannot be used .* indivisible by patch size"),
        ("torchvision:maxvit_t", 32, "maxvit_t cannot be used with images of 32 px .*partition"),
        ("torchvision:squeezenet1_1", 16, "squeezenet1_1 cannot be used with images of 16 px"),
        ("torchvision:resnet81", 32, "torchvision has no model 'resnet81'; did you mean 'resnet"),
        ("torchvision:zzz", 32, r"torchvision has no model 'zzz'; its documentation lists \d+"),
        ("torchvison:resnet18", 32, "There is no model 'torchvison:resnet18'; did you mean"),
        ("torchvision:", 32, "There is no model 'torchvision:'"),
        ("timm:vit_tiny_patch16_224", 40, "it cuts images into patches of 16 px.; use another"),
        ("timm:efficientnet_lite0.ra_in1k", 32, "timm has no model"),
    ],
)
def test_what_has_no_maps_or_no_such_name_is_refused(name, size, sentence):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=sentence):
        build_model(name, 3, size)


def test_timm_is_asked_for_where_it_lacks(monkeypatch):
    def missing(package):
        raise ModuleNotFoundError(name=package)

    monkeypatch.setattr("kdtune.runtime.optional_imports.import_module", missing)
    with pytest.raises(UserError, match=r"needs timm, .* pip install '.\[timm\]'"):
        require_model("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("torchvision:mobilenet_v3_small", "drop_rate"),
        ("torchvision:efficientnet_b0", "drop_path_rate"),
        ("timm:test_vit", "drop_rate"),
        ("timm:test_vit", "drop_path_rate"),
    ],
)
def test_dropout_and_stochastic_depth_are_those_of_the_library(name, key):
    """A high rate changes outputs from call to call while training, and none afterwards."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    images = torch.randn(4, 3, 32, 32)
    differs = {}
    for rate in (0.0, 0.5):
        torch.manual_seed(0)
        model = build_model(name, 10, 32, rates={"drop_rate": 0.0, key: rate})
        for module in model.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        torch.nn.init.normal_([*model.parameters()][-2])  # some begin with logits of 0
        differs[rate] = not torch.equal(model(images)[0], model(images)[0])
        model.eval()
        assert torch.equal(model(images)[0], model(images)[0])
    assert differs == {0.0: False, 0.5: True}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ResNet18", "drop_rate"),
        ("torchvision:resnet18", "drop_rate"),
        ("torchvision:mobilenet_v3_small", "drop_path_rate"),
        ("torchvision:swin_t", "drop_rate"),
        ("torchvision:swin_t", "drop_path_rate"),
    ],
)
def test_a_network_without_a_rate_is_told(name, key):
    with pytest.raises(UserError, match=f"{name} has no {key}"):
        build_model(name, 10, 32, rates={key: 0.1})
