"""Settings of images, which runs and sweeps share."""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from kdtune.config.base import BaseConfig

DATA_DESCRIPTION = "a folder, a table, tar shards, hf:NAME, or the name of a data set"


def _check_colour(name: str) -> str:
    from PIL import ImageColor

    if len(ImageColor.getrgb(name)) != 3:  # else a colour that shows what is below
        raise ValueError("it must be opaque")
    return name


Colour = Annotated[str, AfterValidator(_check_colour)]
"""A colour's name, or its code such as ``#ff8000``."""


class DataSource(NamedTuple):
    """Images of a run; `DataConfig` describes the fields.

    Attributes:
        data_dir: a folder, a table, tar shards, ``hf:NAME``, or a key of `DATASET_NAMES` if there
            is no folder or file of that name.
    """

    data_dir: str
    data_root: str | None = None
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    background: str = "white"
    bit_depth: int | None = None


class DataConfig(BaseConfig):
    """Settings of images that runs and sweeps share."""

    data_root: str | None = Field(
        None, description="folder of named data sets; datasets/ in the cache if not given"
    )
    train_images: int | None = Field(
        None, ge=2, description="size of a stratified subset for training; all if not given"
    )
    validation_images: int | None = Field(
        None, ge=2, description="size of a stratified subset for validation; all if not given"
    )
    test_images: int | None = Field(
        None, ge=2, description="size of a stratified subset for testing; all if not given"
    )
    image_column: str | None = Field(
        None, description="column of a table with the images; found by its name if not given"
    )
    label_column: str | None = Field(
        None, description="column of a table with the labels; found by its name if not given"
    )
    background: Colour = Field(
        "white", description="colour below transparent images, such as black or #808080"
    )
    bit_depth: int | None = Field(
        None,
        ge=8,
        le=16,
        description="used bits of 16-bit images; those of 64 training images if not given",
    )
    cache_gb: float = Field(
        20, ge=0, description="size of this machine's cache in GB; 0 keeps nothing on disk"
    )
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read")
