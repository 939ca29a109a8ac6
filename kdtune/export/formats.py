"""File formats of networks, each with all that is needed to use a network.

Every network takes normalised images, float32 [B, 3, S, S] with any B, and gives logits [B, K] on
the CPU in float32. Only opening a ``.pt2`` can run code, since torch unpickles parts of it.
"""

import json
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from kdtune.data.splits import Rendering
from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from kdtune.errors import RunError, UserError, first_line
from kdtune.models.checkpoints import METADATA_KEY, load_model, save_model
from kdtune.runtime.console import printable_path
from kdtune.runtime.optional_imports import import_optional


class NetworkDescription(BaseModel):
    """The images that a network takes, and the meaning of its logits; alike in every format."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(description="architecture")
    image_size: int = Field(ge=8, le=4096, description="S, pixels")
    mean: tuple[float, float, float] = Field(IMAGENET_MEAN, description="by channel, red first")
    std: tuple[float, float, float] = Field(IMAGENET_STD, description="by channel, red first")
    classes: tuple[str, ...] = Field(min_length=2, description="in the order of the logits")
    background: str = Field("white", description="colour below transparent images")
    bit_depth: int = Field(16, ge=8, le=16, description="used bits of 16-bit images")
    images: str = Field(
        "turned as their EXIF data say, 16-bit values times 255 / (2^bit_depth - 1), transparent "
        "ones laid on background, RGB, resized to image_size x image_size with Pillow's bilinear "
        "filter whatever the aspect ratio, divided by 255, minus mean, divided by std: float32 "
        "[B, 3, S, S]",
        description="how images are prepared, in words",
    )

    @property
    def rendering(self) -> Rendering:
        """The rules by which images are decoded."""
        return Rendering(self.background, self.bit_depth)


LoadedModel = dict[str, Any]
"""A network as `kdtune.models.checkpoints.load_model` returns it."""

Logits = Callable[[Tensor], Tensor]
"""Maps normalised images, float32 [B, 3, S, S], to logits, float32 [B, K]."""


@dataclass(frozen=True)
class OpenedNetwork:
    """A network that was opened, with its description."""

    logits: Logits
    description: NetworkDescription


@dataclass(frozen=True)
class ExportFormat:
    """A file format of networks; `read` also returns the description's values, or None."""

    write: Callable[[Path, LoadedModel], None]
    read: Callable[[Path], tuple[Logits, Any]]
    packages: tuple[str, ...] = ()
    runs_code: bool = False


def describe_network(loaded: LoadedModel) -> NetworkDescription:
    """Return the description of a network that kdtune saved."""
    config, keys = loaded["config"], ("model", "image_size", "background", "bit_depth")
    values = {key: config[key] for key in keys if config.get(key) is not None}
    return _parse_description("The checkpoint", {**values, "classes": loaded["classes"]})


def _parse_description(source: str, values: Any) -> NetworkDescription:
    try:
        return NetworkDescription.model_validate(values)
    except ValidationError as error:
        first, *_ = error.errors()
        problem = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
        raise UserError(f"{source} does not describe a network: {problem}.") from None


def require_formats(names: Iterable[str]) -> None:
    """Check that these formats exist, and that the packages that they need are installed."""
    for name in names:
        if name not in FORMATS:
            raise UserError(f"There is no format '{name}'; there are {', '.join(FORMATS)}.")
        for package in FORMATS[name].packages:
            import_optional(package, "onnx")


def open_network(path: Path, trust: bool = False) -> OpenedNetwork:
    """Open a network of any of the formats.

    Args:
        path: its file. If it has no description, that is read from the `.json` beside it, which
            has the form that ``kdtune export`` writes.
        trust: open a file that may run code, too.
    """
    name, shown = path.suffix.removeprefix(".").lower(), printable_path(path)
    if name not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise UserError(f"{shown} has an unknown format; known are {known}.")
    if not path.is_file():
        raise UserError(f"There is no file {shown}.")
    if FORMATS[name].runs_code and not trust:
        raise UserError(
            f"{shown} is a program: opening it may run any code; if you trust it, give --trust."
        )
    logits, values = FORMATS[name].read(path)
    description = _parse_description(shown, _read_sidecar(path) if values is None else values)
    size, num_classes = description.image_size, len(description.classes)
    try:
        output_shape = list(logits(torch.zeros(2, 3, size, size)).shape)
    except Exception:  # each runtime has its own
        message = f"{shown} does not take images of {size} px, as its description says."
        raise UserError(message) from None
    if output_shape != [2, num_classes]:
        raise UserError(
            f"{shown} gives {output_shape} for two images, but {num_classes} classes are named."
        )
    return OpenedNetwork(logits, description)


def _read_sidecar(path: Path) -> Any:
    sidecar = path.with_suffix(".json")
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{printable_path(path)} does not say what classes and images it is for, and there "
            f"is no {printable_path(sidecar)} that does."
        ) from None
    except ValueError:
        raise UserError(f"{printable_path(sidecar)} is not valid JSON.") from None


def _write_checkpoint(path: Path, loaded: LoadedModel) -> None:
    saved_keys = ("config", "classes", "epoch", "validation_accuracy", "trial_id")
    save_model(path, loaded["model"], **{key: loaded[key] for key in saved_keys})


def _read_checkpoint(path: Path) -> tuple[Logits, Any]:
    loaded = load_model(path)
    description = describe_network(loaded).model_dump() if loaded["config"] is not None else None
    return _LogitsOnly(loaded["model"]), description


class _LogitsOnly(nn.Module):
    """A network without its feature maps and without gradients."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)[0]
        return logits


def _export_program(loaded: LoadedModel, image_size: int) -> torch.export.ExportedProgram:
    """Return a network as a graph that takes any number of images."""
    images = torch.zeros(2, 3, image_size, image_size)
    batch, network = ({0: torch.export.Dim.DYNAMIC},), _LogitsOnly(loaded["model"])
    network(images)  # LeViT and others keep tensors of their first pass, which must be real ones
    program = torch.export.export(network, (images,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_pt2(path: Path, loaded: LoadedModel) -> None:
    description = describe_network(loaded)
    program = _export_program(loaded, description.image_size)
    torch.export.save(program, path, extra_files={METADATA_KEY: description.model_dump_json()})


def _read_pt2(path: Path) -> tuple[Logits, Any]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{printable_path(path)} is damaged, or not a program of torch.export.")
    extra_files = {METADATA_KEY: "null"}
    try:
        with warnings.catch_warnings(action="ignore"):  # torch 2.9 warns of its own buffer
            program = torch.export.load(path, extra_files=extra_files).module()
        values = json.loads(extra_files[METADATA_KEY])
    except Exception as error:
        raise UserError(f"{printable_path(path)} cannot be opened: {first_line(error)}.") from None

    @torch.no_grad()
    def compute_logits(images: Tensor) -> Tensor:
        outputs: Tensor = program(images)
        return outputs

    return compute_logits, values


def _write_onnx(path: Path, loaded: LoadedModel) -> None:
    description, onnx = describe_network(loaded), import_optional("onnx", "onnx")
    program = _export_program(loaded, description.image_size)
    exported = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert exported is not None
    graph = exported.model_proto
    onnx.helper.set_model_props(graph, {METADATA_KEY: description.model_dump_json()})
    path.write_bytes(graph.SerializeToString())


def _read_onnx(path: Path) -> tuple[Logits, Any]:
    runtime = import_optional("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        values = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "null"))
        [images] = session.get_inputs()
    except Exception:
        message = f"{printable_path(path)} is broken, or no ONNX network of one input."
        raise UserError(message) from None

    def compute_logits(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {images.name: batch.numpy()})[0])

    return compute_logits, values


FORMATS = {
    "pth": ExportFormat(_write_checkpoint, _read_checkpoint),
    "safetensors": ExportFormat(_write_checkpoint, _read_checkpoint),
    "pt2": ExportFormat(_write_pt2, _read_pt2, runs_code=True),
    "onnx": ExportFormat(_write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
"""Formats by the suffix of their files."""

MAX_LOGIT_DIFFERENCE = 1e-4
"""Largest difference between logits that counts as rounding, as a share of the largest logit."""

COMPARED_BATCH_SIZES = (1, 3, 64)
"""Batch sizes with which a written network is compared with its checkpoint."""


def measure_logit_difference(loaded: LoadedModel, path: Path, images: Tensor) -> float:
    """Return the largest difference of a logit in a file, as a share of the largest logit.

    Args:
        loaded: the network that was written.
        path: the file.
        images: normalised, at least as many as the largest of `COMPARED_BATCH_SIZES`.

    Raises:
        RunError: the difference is above `MAX_LOGIT_DIFFERENCE`, or an image gets another class.
    """
    original, reopened = _LogitsOnly(loaded["model"]), open_network(path, trust=True).logits
    largest = 0.0
    for size in COMPARED_BATCH_SIZES:
        expected, actual = original(images[:size]), reopened(images[:size])
        difference = ((actual - expected).abs().max() / expected.abs().max()).item()
        largest = max(difference, largest)  # in this order it stays NaN
        same_classes = torch.equal(actual.argmax(1), expected.argmax(1))
        if not (largest <= MAX_LOGIT_DIFFERENCE and same_classes):
            raise RunError(
                f"its logits differ by {largest:.1e} of the largest, where "
                f"{MAX_LOGIT_DIFFERENCE:.0e} is allowed, with {size} images at once"
            )
    return largest
