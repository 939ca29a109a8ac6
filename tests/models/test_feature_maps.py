"""Maps of layers that are named, and tokens that become maps."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from kdtune.errors import UserError
from kdtune.models import probe, split_outputs
from kdtune.models.feature_maps import evenly_spaced, find_patch_size, to_map, with_feature_maps


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip


class Patches(nn.Module):
    """A transformer with a class token and four registers, for any size of images."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.unused = nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(images), -1, -1), patches], dim=1)
        return {"logits": self.head(self.block(tokens)[:, 0]), "hidden": tokens}


@pytest.mark.parametrize(
    ("count", "blocks"), [(12, [2, 5, 8, 11]), (4, [0, 1, 2, 3]), (2, [0, 1]), (6, [0, 2, 3, 5])]
)
def test_blocks_that_end_a_stage_are_evenly_spaced_and_the_last_is_one(count, blocks):
    assert evenly_spaced(count) == blocks


def test_tokens_are_the_patches_row_by_row_without_those_before_them():
    # 2x2 patches after a class token and four registers: 9 tokens, which are no grid of 3x3
    tokens = torch.arange(9.0).view(1, 9, 1).repeat(2, 1, 3)
    maps = to_map(tokens, image_size=32, patch_size=16)
    assert maps.shape == (2, 3, 2, 2)
    assert maps[1, 2].tolist() == [[5, 6], [7, 8]]
    assert to_map(tokens[:, 4:], 32, 0)[0, 0].tolist() == [[5, 6], [7, 8]]  # a class token


def test_channels_that_come_last_come_second():
    first = torch.arange(24.0).view(1, 6, 2, 2)
    assert torch.equal(to_map(first, 8, 4), first)
    assert torch.equal(to_map(first.permute(0, 2, 3, 1), 8, 4), first)
    with pytest.raises(UserError, match=r"returns \[2, 3\], which is neither a map .* nor tokens"):
        to_map(torch.zeros(2, 3), 8, 4)


@pytest.mark.parametrize("size", [8, 12])
def test_layers_that_are_named_give_the_maps_of_a_transformer(size):
    plain = Patches().eval()
    model = with_feature_maps(copy.deepcopy(plain), ["block", "embed"])
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert "maps=block,embed" in repr(model)  # the key of cached targets has it
    images, side = torch.rand(2, 3, size, size), size // 4
    logits, (of_block, of_embed) = probe(model, images)
    with torch.no_grad():
        outputs = plain(images)
        tokens = plain.block(outputs["hidden"])[:, 5:]
    assert torch.equal(logits, outputs["logits"])
    assert torch.equal(of_embed, plain.embed(images))
    assert torch.equal(of_block, tokens.transpose(1, 2).reshape(2, 8, side, side))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (["block", "emmbed"], "A Patches has no layer 'emmbed'; did you mean 'embed'?"),
        (["unused"], "A Patches does not run its layer 'unused'"),
        (["head"], r"returns \[2, 3\], which is neither"),
    ],
)
def test_layers_that_give_no_map_are_a_sentence(layers, sentence):
    with pytest.raises(UserError, match=sentence):
        probe(with_feature_maps(Patches(), layers), torch.rand(2, 3, 8, 8))


def test_threads_get_the_maps_of_their_own_images():
    model = with_feature_maps(convolutions().eval(), ["0", "1"])
    batches = [torch.full((1, 3, 16, 16), float(i)) for i in range(40)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = [model(batch)[1] for batch in batches]
        found = list(pool.map(lambda batch: probe(model, batch)[1], batches))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_copy_gives_maps_too():
    model = with_feature_maps(convolutions().eval(), ["1"])
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(copy.deepcopy(model)(images)[1][0], model(images)[1][0])


def test_a_patch_is_known_by_the_first_convolution():
    assert (find_patch_size(Patches()), find_patch_size(convolutions())) == (4, 0)


LOGITS, A, B = torch.zeros(2, 3), torch.zeros(2, 4, 8, 8), torch.zeros(2, 5, 4, 4)


@pytest.mark.parametrize(
    "outputs", [(LOGITS, [A, B]), (LOGITS, (A, B)), (LOGITS, A, B), [LOGITS, A, B]]
)
def test_outputs_may_be_nested_or_not(outputs):
    logits, maps = split_outputs(convolutions(), outputs)
    assert logits is LOGITS and len(maps) == 2 and maps[0] is A and maps[1] is B


@pytest.mark.parametrize("outputs", [LOGITS, (LOGITS,), (LOGITS, []), (LOGITS, {"a": A}), None])
def test_outputs_without_maps_are_a_sentence(outputs):
    with pytest.raises(UserError, match="name the layers that return its maps"):
        split_outputs(convolutions(), outputs)
