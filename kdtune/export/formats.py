"""Networks in the formats that others load, each with all that is needed to use it.

Whatever the format, a network takes normalised images, float32 [B, 3, S, S] with any B, and gives
logits [B, K], on the CPU in float32; feature maps are left out. Opening a file runs no code from
it: ``.pth`` and ``.safetensors`` are read as tensors and plain values, ``.onnx`` is a graph of
ONNX Runtime's own operators. A ``.pt2`` is different: to load one, torch unpickles parts of it
with ``weights_only=False`` and evaluates its expressions (torch 2.14), so it can run anything.
One is opened if, but for its weights, which are plain bytes, it is to the last byte what kdtune
itself writes for that network, here and with this version of torch, and else only with trust.
What is trusted is that torch and ONNX Runtime read damaged weights and graphs without harm.
"""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2

from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from kdtune.errors import RunError, UserError, first_line
from kdtune.models import build_model
from kdtune.models.checkpoints import METADATA_KEY, load_model, save_model
from kdtune.runtime.console import printable_path
from kdtune.runtime.optional_imports import import_optional


class NetworkDescription(BaseModel):
    """What images a network takes, and what its logits mean; the same in every format."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(description="architecture")
    image_size: int = Field(ge=8, le=4096, description="S, pixels")
    mean: tuple[float, float, float] = Field(
        default=IMAGENET_MEAN, description="of each channel, red first"
    )
    std: tuple[float, float, float] = Field(
        default=IMAGENET_STD, description="of each channel, red first"
    )
    classes: tuple[str, ...] = Field(min_length=2, description="in the order of the logits")
    images: str = Field(
        default="RGB, resized to image_size x image_size with Pillow's bilinear filter whatever "
        "the aspect ratio, divided by 255, minus mean, divided by std: float32 [B, 3, S, S]",
        description="how images are prepared, in words",
    )

    @classmethod
    def parse(cls, source: str, values: Any) -> "NetworkDescription":
        """Build it from plain values that `source`, a file, holds.

        Raises:
            UserError: they are no description.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first_error = error.errors()[0]
            location = ".".join(map(str, first_error["loc"])) or "all of it"
            raise UserError(
                f"{source} does not describe a network: {location}: {first_error['msg']}."
            ) from None


@dataclass(frozen=True)
class OpenedNetwork:
    """A network that was opened.

    Attributes:
        logits: takes normalised images, float32 [B, 3, S, S], and gives float32 [B, K].
        about: see `Description`.
    """

    logits: Callable[[Tensor], Tensor]
    description: NetworkDescription


LoadedModel = dict[str, Any]
"""A network as `kdtune.models.checkpoints.load_model` gives it."""


@dataclass(frozen=True)
class ExportFormat:
    """A format of networks.

    Attributes:
        write: writes a network to a file.
        read: reads it: the logits, and what the file says of it, if it says anything.
        packages: what it needs beyond kdtune's own dependencies.
    """

    write: Callable[[Path, LoadedModel], None]
    read: Callable[[Path, bool], tuple[Callable[[Tensor], Tensor], Any]]
    packages: tuple[str, ...] = ()


def describe_network(loaded: LoadedModel) -> NetworkDescription:
    """What there is to say of a network that kdtune saved."""
    config = loaded["config"]
    values = {"model": config["model"], "image_size": config["image_size"]}
    return NetworkDescription.parse("The checkpoint", {**values, "classes": loaded["classes"]})


def require_formats(names: Iterable[str]) -> None:
    """Check that networks can be written in these formats here.

    Raises:
        UserError: one is unknown, or needs a package that is not there.
    """
    for name in names:
        if name not in FORMATS:
            raise UserError(f"There is no format '{name}'; there are {', '.join(FORMATS)}.")
        for package in FORMATS[name].packages:
            import_optional(package, "onnx")


def open_network(path: Path, trust: bool = False) -> OpenedNetwork:
    """Open a network of any of the formats.

    Args:
        path: its file. What it does not say of its network is read from the `.json` beside it,
            as ``kdtune export`` writes it.
        trust: open a `.pt2` also where it may run code.

    Raises:
        UserError: the file is missing, broken, of no known format, or would run code; a package
            is missing; or nothing says what classes and images the network is for.
    """
    name = path.suffix.removeprefix(".").lower()
    if name not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise UserError(f"{printable_path(path)} is of no known format; there are {known}.")
    if not path.is_file():
        raise UserError(f"There is no file {printable_path(path)}.")
    logits, description = FORMATS[name].read(path, trust)
    description = NetworkDescription.parse(
        printable_path(path), description if description is not None else _read_sidecar(path)
    )
    size = description.image_size
    try:
        output_shape = tuple(logits(torch.zeros(2, 3, size, size)).shape)
    except Exception:  # each runtime has its own
        raise UserError(
            f"{printable_path(path)} does not take images of {size} px, as it is said to."
        ) from None
    if output_shape != (2, len(description.classes)):
        raise UserError(
            f"{printable_path(path)} gives {list(output_shape)} for two images, but {len(description.classes)} classes "
            "are named."
        )
    return OpenedNetwork(logits, description)


def _read_sidecar(path: Path) -> Any:
    sidecar = path.with_suffix(".json")
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{printable_path(path)} does not say what classes and images it is for, and there is no "
            f"{printable_path(sidecar)} that does."
        ) from None
    except ValueError:
        raise UserError(f"{printable_path(sidecar)} is not valid JSON.") from None


def _write_checkpoint(path: Path, loaded: LoadedModel) -> None:
    saved_keys = ("config", "classes", "epoch", "validation_accuracy", "trial_id")
    save_model(path, loaded["model"], **{key: loaded[key] for key in saved_keys})


def _read_checkpoint(path: Path, trust: bool) -> tuple[Callable[[Tensor], Tensor], Any]:
    loaded = load_model(path)
    description = describe_network(loaded).model_dump() if loaded["config"] is not None else None
    return _LogitsOnly(loaded["model"]), description


class _LogitsOnly(nn.Module):
    """A network without its feature maps, and without gradients."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[0]


def _export_program(model: nn.Module, image_size: int) -> torch.export.ExportedProgram:
    """A network as a graph that takes any number of images."""
    images = torch.zeros(2, 3, image_size, image_size)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(_LogitsOnly(model), (images,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_program(file: Any, model: nn.Module, description: NetworkDescription) -> None:
    extra_files = {METADATA_KEY: description.model_dump_json()}
    torch.export.save(
        _export_program(model, description.image_size), file, extra_files=extra_files
    )


def _write_pt2(path: Path, loaded: LoadedModel) -> None:
    _write_program(path, loaded["model"], describe_network(loaded))


def _read_pt2(path: Path, trust: bool) -> tuple[Callable[[Tensor], Tensor], Any]:
    content = path.read_bytes()
    values, metadata_name = None, f"extra/{METADATA_KEY}"
    try:
        reader = PT2ArchiveReader(io.BytesIO(content))
        if metadata_name in reader.get_file_names():
            values = json.loads(reader.read_string(metadata_name))
    except Exception:
        raise UserError(
            f"{printable_path(path)} is broken, or no program of torch.export."
        ) from None
    description = (
        NetworkDescription.parse(printable_path(path), values) if values is not None else None
    )
    if not (trust or (description is not None and _is_kdtune_program(reader, description))):
        raise UserError(
            f"{printable_path(path)} is a program, and not one that kdtune writes with torch "
            f"{torch.__version__}: opening it may run any code; if you trust it, give --trust."
        )
    try:
        # `torch.export.load` would, where this fails, try an older form with another reader, of
        # which nothing was compared.
        program = load_pt2(io.BytesIO(content)).exported_programs["model"].module()
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"{printable_path(path)} cannot be opened: {reason}.") from None

    def compute_logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = program(images)
        return outputs

    return compute_logits, values


def _is_kdtune_program(reader: PT2ArchiveReader, description: NetworkDescription) -> bool:
    """Whether a program is, but for its weights, the one that is written for its network."""
    file = io.BytesIO()
    try:
        model = build_model(description.model, len(description.classes), description.image_size)
    except UserError:  # such as that of a plug-in that was not given
        return False
    _write_program(file, model, description)
    expected = PT2ArchiveReader(io.BytesIO(file.getvalue()))
    return _archive_contents(reader) == _archive_contents(expected)


def _archive_contents(reader: PT2ArchiveReader) -> dict[str, bytes | None]:
    """What is in an archive; of what no code can be in, the names alone."""
    codeless_prefixes = ("data/weights/weight_", "extra/", ".data/serialization_id")
    return {
        name: None if name.startswith(codeless_prefixes) else reader.read_bytes(name)
        for name in reader.get_file_names()
    }


def _write_onnx(path: Path, loaded: LoadedModel) -> None:
    description, onnx = describe_network(loaded), import_optional("onnx", "onnx")
    program = _export_program(loaded["model"], description.image_size)
    exported = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert exported is not None
    graph = exported.model_proto
    onnx.helper.set_model_props(graph, {METADATA_KEY: description.model_dump_json()})
    path.write_bytes(graph.SerializeToString())


def _read_onnx(path: Path, trust: bool) -> tuple[Callable[[Tensor], Tensor], Any]:
    runtime = import_optional("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is said below, once
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        values = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        values = json.loads(values) if values is not None else None
        [images] = session.get_inputs()
    except Exception:
        raise UserError(
            f"{printable_path(path)} is broken, or no ONNX network of one input."
        ) from None

    def compute_logits(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {images.name: batch.numpy()})[0])

    return compute_logits, values


FORMATS = {
    "pth": ExportFormat(_write_checkpoint, _read_checkpoint),
    "safetensors": ExportFormat(_write_checkpoint, _read_checkpoint),
    "pt2": ExportFormat(_write_pt2, _read_pt2),
    "onnx": ExportFormat(_write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
"""Formats by the ending of their files."""


MAX_LOGIT_DIFFERENCE = 1e-4
"""Largest difference of a logit from the checkpoint's that is taken for rounding, as a share of
the largest logit."""

COMPARED_BATCH_SIZES = (1, 3, 64)
"""Batch sizes with which a written network is compared with its checkpoint."""


def measure_logit_difference(loaded: LoadedModel, path: Path, images: Tensor) -> float:
    """Open a network that was just written, and compare it with the one that was to be written.

    Args:
        loaded: the one that was.
        path: the file.
        images: normalised, at least as many as the largest of `BATCHES`.

    Returns:
        The largest difference of a logit, as a share of the largest logit.

    Raises:
        RunError: that is more than `TOLERANCE`, or an image gets another class.
    """
    expected_network, written_network = (
        _LogitsOnly(loaded["model"]),
        open_network(path, trust=True).logits,
    )
    largest = 0.0
    for size in COMPARED_BATCH_SIZES:
        expected, written = expected_network(images[:size]), written_network(images[:size])
        largest = max(largest, ((written - expected).abs().max() / expected.abs().max()).item())
        if not largest <= MAX_LOGIT_DIFFERENCE or not torch.equal(
            written.argmax(1), expected.argmax(1)
        ):
            raise RunError(
                f"its logits differ by {largest:.1e} of the largest, where {MAX_LOGIT_DIFFERENCE:.0e} is "
                f"allowed, with {size} images at once"
            )
    return largest
