"""Teacher targets: a teacher's outputs for a data set, computed once for all runs.

One pass of the teacher gives the targets of every method. On a CPU each batch is computed by one
thread, so the numbers do not depend on how many cores there are. A GPU computes larger batches,
and the targets of one are stored while it computes the next.
"""

import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.decoding import limit_workers
from kdtune.methods import METHODS, build_method
from kdtune.methods.checks import validate_targets
from kdtune.methods.method import Method, StageShapes, TensorsByName
from kdtune.models import probe, stage_shapes
from kdtune.models.on_device import DeviceModel, pick_device, pick_precision
from kdtune.runtime.device import is_gpu, iter_on_host
from kdtune.runtime.process import single_threaded
from kdtune.storage.array_cache import ArrayCache, CacheKey, CreateArray, OnCacheProgress

TEACHER_BATCH_SIZE = 64

GPU_BATCH_SIZE = 256
"""Images that a GPU computes at once; where its memory is too small, half or a quarter of them."""

MAX_THREADS = 8
"""Maximum number of batches that a CPU computes at once; each takes memory."""

MAX_ROUNDING_ERROR = 0.02
"""Largest relative error (root mean square) of logits and stages by bf16 or float16."""

VERSIONED_PACKAGES = ("torch", "torchvision", "timm")
"""Packages whose version stands for the code of their layers."""


@dataclass(frozen=True)
class TargetSpec:
    """The form in which a target is cached.

    Attributes:
        shape: of one image.
        method_sha256: of the source of its method; empty for logits, which all methods share.
    """

    shape: tuple[int, ...]
    is_float16: bool
    method_sha256: str

    @property
    def bytes_per_image(self) -> int:
        return math.prod(self.shape) * (2 if self.is_float16 else 4)


class TeacherTargets:
    """The targets of a teacher that runs request, by name.

    Args:
        teacher: in eval mode; its weights and statistics must not change.
        image_size: of all runs, in pixels.
        requests: settings, and (C, H, W) of the student's stages, of runs to request for.
    """

    def __init__(
        self,
        teacher: nn.Module,
        image_size: int,
        requests: Iterable[tuple[TrainConfig, Iterable[tuple[int, int, int]]]] = (),
    ):
        self.teacher = teacher
        self.specs: dict[str, TargetSpec] = {}
        self._methods: list[Method] = []
        self.probe_outputs = probe(teacher, torch.zeros(2, 3, image_size, image_size))
        """Logits and stages of two images."""
        self.stage_shapes = stage_shapes(self.probe_outputs[1])
        for config, shapes in requests:
            self.request(config, list(shapes))

    def request(self, config: TrainConfig, student_shapes: StageShapes) -> dict[str, TargetSpec]:
        """Request the targets of a run, and return them by name.

        Args:
            config: the run's settings.
            student_shapes: (C, H, W) of the student's stages.
        """
        method = build_method(config, student_shapes, self.stage_shapes)
        classes = type(method).__mro__
        source = source_sha256(classes[: classes.index(Method) + 1])
        with METHODS.blame_provider(config.method):
            targets = validate_targets(config.method, method.targets(*self.probe_outputs), 2)
        sources = dict.fromkeys(targets, source) | {"logits": ""}
        requested = {
            name: TargetSpec(tuple(value.shape[1:]), name in method.float16_targets, sources[name])
            for name, value in targets.items()
        }
        if requested.keys() - self.specs.keys():
            self._methods.append(method)
            self.specs = {**requested, **self.specs}  # the first request of a name decides
        return requested

    def load_or_compute(
        self,
        cache: ArrayCache,
        pixels: np.ndarray,
        pixel_key: CacheKey,
        label: str,
        config: TrainConfig,
        on_progress: OnCacheProgress = lambda progress: None,
    ) -> dict[str, np.ndarray]:
        """Return all requested targets of images, [N, ...] by name; compute those missing.

        Args:
            cache: keeps the targets.
            pixels: uint8 [N, 3, H, W].
            pixel_key: all that determines the pixels.
            label: names the pixels in messages.
            config: gives device and precision.
            on_progress: called when targets are computed or waited for.
        """
        device = pick_device(config.device)
        precision = pick_precision(config.precision, self.teacher, device)
        group_key = {
            "kind": "targets",
            "pixels": dict(pixel_key),
            "teacher": self._teacher_sha256,
            "precision": "tf32" if config.precision == "tf32" else str(precision),
            "device": device.type,
            "torch": torch.__version__,
            "kdtune": version("kdtune"),
            **library_versions(self.teacher),
        }

        def build(names: Sequence[str], create: CreateArray) -> None:
            teacher = self._place_teacher(config, pixels[:TEACHER_BATCH_SIZE])
            in_float32 = {name for name in names if not self.specs[name].is_float16}
            batch_size = GPU_BATCH_SIZE if is_gpu(device) else TEACHER_BATCH_SIZE
            while True:
                try:
                    overflowed = self._fill_arrays(
                        teacher, pixels, names, in_float32, create, batch_size
                    )
                except torch.OutOfMemoryError:
                    if batch_size <= TEACHER_BATCH_SIZE:
                        raise
                    batch_size //= 2
                    continue
                if not overflowed:
                    break
                in_float32 |= overflowed
            self.teacher.cpu()  # a trial that has its targets needs the memory

        array_keys = {name: {"name": name, **asdict(spec)} for name, spec in self.specs.items()}
        title = f"the teacher's targets of {label}"
        return cache.open_arrays(title, group_key, array_keys, build, on_progress)

    @cached_property
    def _teacher_sha256(self) -> str:
        return model_sha256(self.teacher)

    def _place_teacher(self, config: TrainConfig, sample: np.ndarray) -> DeviceModel:
        """Return the teacher in the fastest type with errors up to `MAX_ROUNDING_ERROR`."""
        place = partial(
            DeviceModel,
            self.teacher,
            pick_device(config.device),
            config.model_copy(update={"compile": False}),
        )
        fast = place()
        if fast.dtype == torch.float32:
            return fast
        # All outputs are compared, so that the choice does not depend on the requests.
        fast_outputs = _compute_outputs(fast, sample)
        exact = place(torch.float32)
        error = _max_relative_error(fast_outputs, _compute_outputs(exact, sample))
        return place() if error <= MAX_ROUNDING_ERROR else exact

    def _fill_arrays(
        self,
        teacher: DeviceModel,
        pixels: np.ndarray,
        names: Sequence[str],
        in_float32: set[str],
        create_array: CreateArray,
        batch_size: int,
    ) -> set[str]:
        """Create and fill arrays; return the names of those whose numbers overflow float16."""
        arrays = {}
        methods = [method.to(teacher.device) for method in self._methods]  # they may have buffers
        for name in names:
            shape = (len(pixels), *self.specs[name].shape)
            dtype = np.float32 if name in in_float32 else np.float16
            arrays[name] = create_array(name, shape, np.dtype(dtype))

        @torch.no_grad()
        def compute_batch(images: Tensor) -> tuple[TensorsByName, Tensor]:
            """Return targets in the type in which they are stored, and which of them overflow."""
            outputs, targets = teacher(images), TensorsByName()
            for method in methods:
                targets |= method.targets(*outputs)
            values = {name: targets[name].float() for name in names}
            stored = {
                name: value.to(torch.float32 if name in in_float32 else torch.float16)
                for name, value in values.items()
            }
            overflows = [
                stored[name].isinf().any() & ~value.isinf().any() for name, value in values.items()
            ]
            return stored, torch.stack(overflows)

        fill = _fill_on_gpu if is_gpu(teacher.device) else _fill_in_threads
        overflows = fill(compute_batch, pixels, arrays, teacher.device, batch_size)
        is_overflowed = torch.stack(overflows).any(0).tolist()
        return {name for name, overflowed in zip(names, is_overflowed, strict=True) if overflowed}


ComputeBatch = Callable[[Tensor], tuple[TensorsByName, Tensor]]


def _fill_in_threads(
    compute_batch: ComputeBatch,
    pixels: np.ndarray,
    arrays: dict[str, np.ndarray],
    device: torch.device,
    batch_size: int,
) -> list[Tensor]:
    """Fill arrays with the targets of pixels; return which of them overflow, for each batch."""

    def fill_batch(start: int) -> Tensor:
        batch = slice(start, start + batch_size)
        stored, overflows = compute_batch(torch.from_numpy(pixels[batch]).to(device))
        for name, value in stored.items():
            arrays[name][batch] = value.cpu().numpy()
        return overflows

    workers = limit_workers(MAX_THREADS) if device.type == "cpu" else 1
    with single_threaded(), ThreadPoolExecutor(workers) as pool:  # its threads inherit this
        return list(pool.map(fill_batch, range(0, len(pixels), batch_size)))


def _fill_on_gpu(
    compute_batch: ComputeBatch,
    pixels: np.ndarray,
    arrays: dict[str, np.ndarray],
    device: torch.device,
    batch_size: int,
) -> list[Tensor]:
    """Do as `_fill_in_threads`, but store the targets of a batch while the next is computed."""
    starts, all_overflows = range(0, len(pixels), batch_size), list[Tensor]()

    def compute_batches() -> Iterator[TensorsByName]:
        for start in starts:
            images = torch.from_numpy(pixels[start : start + batch_size]).pin_memory()
            stored, overflows = compute_batch(images.to(device, non_blocking=True))
            all_overflows.append(overflows)
            yield stored

    for start, stored in zip(starts, iter_on_host(compute_batches(), device), strict=True):
        for name, value in stored.items():
            arrays[name][start : start + batch_size] = value.numpy()
    return all_overflows


@torch.no_grad()
def _compute_outputs(teacher: DeviceModel, pixels: np.ndarray) -> list[Tensor]:
    logits, features = teacher(torch.from_numpy(pixels).to(teacher.device))
    return [output.float() for output in (logits, *features)]


def _max_relative_error(approximate: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest relative error: root mean square of the difference over that of exact."""
    pairs = zip(approximate, exact, strict=True)
    errors = torch.stack([(a - b).norm() / b.norm().clamp(min=1e-30) for a, b in pairs])
    return float(errors.max())  # not a number, if one error is not


def source_sha256(classes: Iterable[type]) -> str:
    """Return the SHA-256 of the modules of classes; of their names where there is no source."""
    return hashlib.sha256("".join(map(_module_source, classes)).encode()).hexdigest()


def _module_source(cls: type) -> str:
    try:
        return inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        return f"{cls.__module__}.{cls.__qualname__}"


def library_versions(teacher: nn.Module) -> dict[str, str]:
    """Return the versions of the libraries that compute a teacher's outputs, besides torch."""
    modules = {cls.__module__ for layer in teacher.modules() for cls in type(layer).__mro__}
    versions = {"torchvision": version("torchvision")}
    if any(module.partition(".")[0] == "timm" for module in modules):
        versions["timm"] = version("timm")
    return versions


def model_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a network: structure, weights, code outside `VERSIONED_PACKAGES`."""
    digest = hashlib.sha256(repr(model).encode())
    sources = {
        _module_source(cls)
        for cls in {type(layer) for layer in model.modules()}
        if cls.__module__.partition(".")[0] not in VERSIONED_PACKAGES
    }
    digest.update("".join(sorted(sources)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
