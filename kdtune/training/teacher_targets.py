"""What a teacher says of a data set, computed once for all runs that learn from it.

One pass of the teacher over a view gives the targets of every method that asks. Each batch is
computed by one thread on its own, so the numbers do not depend on how many cores there are.
"""

import hashlib
import inspect
import math
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.transforms import limit_workers, normalise
from kdtune.methods import METHODS, Method, build_method
from kdtune.methods.checks import validate_targets
from kdtune.methods.method import StageShapes, TensorsByName
from kdtune.models import probe, stage_shapes
from kdtune.models.on_device import DeviceModel, pick_device, pick_precision
from kdtune.storage.array_cache import ArrayCache, CacheKey, CreateArray, OnCacheProgress

TEACHER_BATCH_SIZE = 64
"""Images that the teacher sees at once."""

MAX_THREADS = 8
"""Batches that a CPU computes at once; each takes memory."""

MAX_BF16_ERROR = 0.02
"""Largest relative error, in the root mean square, that bf16 may bring to logits and stages."""


VERSIONED_PACKAGES = ("torch", "torchvision", "timm")
"""Where layers come from that do not change from one day to the next."""


@dataclass(frozen=True)
class TargetSpec:
    """The form in which a target is kept.

    Attributes:
        shape: of one image.
        rounded: kept in float16, not in float32.
        made_by: SHA-256 of the file of the method that makes it; empty for the logits, which
            every method keeps as they are.
    """

    shape: tuple[int, ...]
    is_float16: bool
    method_sha256: str

    @property
    def bytes_per_image(self) -> int:
        """For one image."""
        return math.prod(self.shape) * (2 if self.is_float16 else 4)


class TeacherTargets:
    """A teacher, and what the runs that learn from it want to know of it.

    Args:
        teacher: in eval mode; its weights and statistics stay as they are.
        image_size: of all runs, in pixels.
    """

    def __init__(self, teacher: nn.Module, image_size: int):
        self.teacher = teacher
        self.specs: dict[str, TargetSpec] = {}
        """All that was asked for, by name."""
        self._methods: list[Method] = []
        self.probe_outputs = probe(teacher, torch.zeros(2, 3, image_size, image_size))
        """Logits and stages for two images."""
        self.stage_shapes = stage_shapes(self.probe_outputs[1])

    def request(self, config: TrainConfig, student_shapes: StageShapes) -> dict[str, TargetSpec]:
        """Ask for what a run needs.

        Args:
            config: the run's settings.
            student: (C, H, W) of the student's stages.

        Returns:
            The run's own targets, by name.

        Raises:
            UserError: the networks cannot be compared, or the method gives no targets.
        """
        method = build_method(config, student_shapes, self.stage_shapes)
        with METHODS.blame_provider(config.method):
            targets = validate_targets(config.method, method.targets(*self.probe_outputs), 2)
        requested = {
            name: TargetSpec(
                tuple(value.shape[1:]),
                name in method.float16_targets,
                source_sha256(_classes_up_to(type(method), Method)) if name != "logits" else "",
            )
            for name, value in targets.items()
        }
        if requested.keys() - self.specs.keys():
            self._methods.append(method)
            self.specs = {**requested, **self.specs}  # as the first that asked makes it
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
        """The targets of a view; what is missing is computed in one pass of the teacher.

        Args:
            cache: where they are kept.
            pixels: uint8 [N, 3, H, W].
            facts: all that made the pixels.
            what: which pixels these are, for people.
            config: gives device and precision.
            tell: told if they are computed.

        Returns:
            By name, [N, ...] in the order of the pixels, see `Target`.
        """
        device = pick_device(config.device)
        precision = pick_precision(config.precision, self.teacher, device)
        group_key = {
            "kind": "targets",
            "pixels": dict(pixel_key),
            "teacher": model_sha256(self.teacher),
            "precision": str(precision),
            "device": device.type,
            "torch": torch.__version__,
            "kdtune": version("kdtune"),
            **library_versions(self.teacher),
        }

        def build(names: Sequence[str], create_array: CreateArray) -> None:
            teacher_on_device = self._place_teacher(device, config, pixels[:TEACHER_BATCH_SIZE])
            float32_names = {name for name in names if not self.specs[name].is_float16}
            while overflowed := self._fill_arrays(
                teacher_on_device, pixels, names, float32_names, create_array
            ):
                float32_names |= overflowed

        array_keys = {name: {"name": name, **asdict(spec)} for name, spec in self.specs.items()}
        return cache.open_arrays(
            f"the teacher's targets of {label}", group_key, array_keys, build, on_progress
        )

    def _place_teacher(
        self, device: torch.device, config: TrainConfig, sample: np.ndarray
    ) -> DeviceModel:
        """The teacher in the fastest precision that keeps the targets within `TOLERANCE`."""

        def with_precision(precision: str) -> DeviceModel:
            settings = {"precision": precision, "compile": False}
            return DeviceModel(self.teacher, device, config.model_copy(update=settings))

        fast = with_precision(config.precision)
        if fast.dtype == torch.float32:
            return fast
        # All that the teacher gives is judged, so that it does not depend on who asks.
        fast_outputs = compute_outputs(fast, sample)
        exact = with_precision("float32")
        error = max_relative_error(fast_outputs, compute_outputs(exact, sample))
        return with_precision(config.precision) if error <= MAX_BF16_ERROR else exact

    def _fill_arrays(
        self,
        teacher_on_device: DeviceModel,
        pixels: np.ndarray,
        names: Sequence[str],
        float32_names: set[str],
        create_array: CreateArray,
    ) -> set[str]:
        """Make arrays and fill them; the names of those whose numbers float16 does not hold."""
        arrays = {}
        for name in names:
            shape = (len(pixels), *self.specs[name].shape)
            arrays[name] = create_array(
                name, shape, np.dtype(np.float32 if name in float32_names else np.float16)
            )
        overflowed: set[str] = set()

        def fill_batch(start: int) -> None:
            batch = pixels[start : start + TEACHER_BATCH_SIZE]
            for name, value in self._compute_batch(teacher_on_device, batch).items():
                if name in arrays:
                    stored = value.to(torch.float32 if name in float32_names else torch.float16)
                    if stored.isinf().any() and not value.isinf().any():
                        overflowed.add(name)
                    arrays[name][start : start + len(batch)] = stored.numpy()

        threads = torch.get_num_threads()
        workers = limit_workers(MAX_THREADS) if teacher_on_device.device.type == "cpu" else 1
        torch.set_num_threads(1)  # the threads below, being new, take this over
        try:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(fill_batch, range(0, len(pixels), TEACHER_BATCH_SIZE)):
                    pass
        finally:
            torch.set_num_threads(threads)
        return overflowed

    @torch.no_grad()
    def _compute_batch(self, teacher_on_device: DeviceModel, pixels: np.ndarray) -> TensorsByName:
        """The targets of a batch of pixels, on the CPU."""
        logits, features = teacher_on_device(
            normalise(torch.from_numpy(pixels).to(teacher_on_device.device))
        )
        targets: TensorsByName = {}
        for method in self._methods:
            targets |= method.targets(logits, features)
        return {name: value.float().cpu() for name, value in targets.items()}


@torch.no_grad()
def compute_outputs(teacher_on_device: DeviceModel, pixels: np.ndarray) -> list[Tensor]:
    """Logits and stages of a batch of pixels, in float32."""
    logits, features = teacher_on_device(
        normalise(torch.from_numpy(pixels).to(teacher_on_device.device))
    )
    return [output.float() for output in (logits, *features)]


def max_relative_error(approximate: list[Tensor], exact: list[Tensor]) -> float:
    """Largest error of any: root mean square of the difference over that of the exact.

    What is zero throughout has the error 0 if it was found to be so.
    """
    pairs = zip(approximate, exact, strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


def _classes_up_to(cls: type, base: type) -> tuple[type, ...]:
    """A class and those above it, up to one of them."""
    return cls.__mro__[: cls.__mro__.index(base) + 1]


def source_sha256(classes: Iterable[type]) -> str:
    """SHA-256 of the files that classes come from; of names without files."""
    digest = hashlib.sha256()
    for cls in classes:
        digest.update(_module_source(cls).encode())
    return digest.hexdigest()


def _module_source(cls: type) -> str:
    """Return the source of a class's module, or the names of both if it has no source."""
    try:
        return inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        return f"{cls.__module__}.{cls.__qualname__}"


def library_versions(teacher: nn.Module) -> dict[str, str]:
    """Versions of the libraries that may compute a teacher's outputs.

    Of timm only if the teacher has parts of its; what is of no library is in `weights_sha256`.
    """
    modules = {cls.__module__ for layer in teacher.modules() for cls in type(layer).__mro__}
    versions = {"torchvision": version("torchvision")}
    if any(module.partition(".")[0] == "timm" for module in modules):
        versions["timm"] = version("timm")
    return versions


_MODEL_SHA256: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def model_sha256(model: nn.Module) -> str:
    """SHA-256 of a network's code, structure, weights and statistics, wherever these lie.

    Code is that of the modules that define its layers, but for those of `LIBRARIES`.

    A network is looked at once: it must not change.
    """
    if model not in _MODEL_SHA256:
        _MODEL_SHA256[model] = _compute_model_sha256(model)
    return _MODEL_SHA256[model]


def _compute_model_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256(repr(model).encode())
    layer_classes = {type(layer) for layer in model.modules()}
    sources = {
        _module_source(cls)
        for cls in layer_classes
        if cls.__module__.partition(".")[0] not in VERSIONED_PACKAGES
    }
    digest.update("".join(sorted(sources)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
