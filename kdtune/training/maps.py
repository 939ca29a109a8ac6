"""Attention and feature maps to look at: as tensors, and as a matplotlib figure."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

from matplotlib.figure import Figure
from torch import Tensor, nn

from kdtune.data.transforms import normalise
from kdtune.errors import UserError
from kdtune.methods.at import attention_map
from kdtune.models import probe

MAX_IMAGES = 4
"""Maximum number of images in a figure."""


class _NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot, which needs a display."""

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def spatial_attention_map(features: Tensor) -> Tensor:
    """Return the attention map [B, H, W] of a stage [B, C, H, W]; see `attention_map`."""
    batch, _, height, width = features.shape
    return attention_map(features).view(batch, height, width)


def mean_feature_map(features: Tensor) -> Tensor:
    """Return the mean over the channels of a stage [B, C, H, W]: [B, H, W]."""
    return features.float().mean(1)


def compute_stage_features(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the features [B, C, H, W] of every stage, in eval mode and without gradients.

    Args:
        model: returns logits and features; it stays in its mode.
        x: images [B, 3, H, W], uint8 or normalised.
    """
    if x.dim() != 4 or x.shape[1] != 3:
        raise UserError(f"x must be a batch of images [B, 3, H, W], not {list(x.shape)}.")
    return probe(model, normalise(x))[1]


def pick_stage(features: list[Tensor], layer_idx: int) -> Tensor:
    """Return the features of one stage.

    Args:
        features: those of all stages.
        layer_idx: the stage, from 0; negative ones count from the last.
    """
    count = len(features)
    if not -count <= layer_idx < count:
        raise UserError(
            f"There is no stage {layer_idx}: the network has {count}, from 0 to {count - 1}."
        )
    return features[layer_idx]


def draw_maps(
    models: nn.Module | Mapping[str, nn.Module],
    x: Tensor,
    map_function: Callable[[Tensor], Tensor],
    layers: Sequence[int] | None = None,
) -> Figure:
    """Draw images in rows and, beside each, maps of the stages of networks.

    Args:
        models: a network, or several by their titles.
        x: images [B, 3, H, W], uint8 or normalised; at most `MAX_IMAGES` are drawn.
        map_function: turns features [B, C, H, W] into maps [B, H, W].
        layers: stages, see `pick_stage`; None draws the last ones, as many as all networks have.
    """
    if isinstance(models, nn.Module):
        models = {"model": models}
    x = x[:MAX_IMAGES]
    features = {name: compute_stage_features(model, x) for name, model in models.items()}
    if layers is None:
        layers = range(-min(map(len, features.values())), 0)
    columns = [
        (f"{name}\nstage {layer % len(maps)}", map_function(pick_stage(maps, layer)).cpu())
        for layer in layers
        for name, maps in features.items()
    ]
    size = 1.5 * (len(columns) + 1), 1.5 * len(x) + 0.4
    figure = _NotebookFigure(figsize=size, layout="constrained")
    axes = figure.subplots(len(x), len(columns) + 1, squeeze=False)
    for row, image in zip(axes, x.float().cpu(), strict=True):
        lowest, highest = image.min(), image.max()
        scaled_image = (image - lowest) / (highest - lowest).clamp(min=1e-12)
        row[0].imshow(scaled_image.permute(1, 2, 0).numpy())
    axes[0, 0].set_title("image", fontsize="small")
    for column, (title, stage_maps) in enumerate(columns, start=1):
        axes[0, column].set_title(title, fontsize="small")
        for row, map_ in zip(axes, stage_maps, strict=True):
            row[column].imshow(map_.numpy())
    for ax in axes.flat:
        ax.set_axis_off()
    return figure
