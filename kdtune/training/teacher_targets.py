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
from kdtune.data.transforms import normalise, usable_workers
from kdtune.methods import METHODS, Method, build_method
from kdtune.methods.checks import check_targets
from kdtune.methods.method import Parts, Shapes
from kdtune.models import look, stage_shapes
from kdtune.models.on_device import Network, pick_device, pick_precision
from kdtune.storage.array_cache import Cache, Facts, Make, Tell

TEACHER_BATCH = 64
"""Images that the teacher sees at once."""

MOST_THREADS = 8
"""Batches that a CPU computes at once; each takes memory."""

TOLERANCE = 0.02
"""Largest relative error, in the root mean square, that bf16 may bring to logits and stages."""


LIBRARIES = ("torch", "torchvision", "timm")
"""Where layers come from that do not change from one day to the next."""


@dataclass(frozen=True)
class Target:
    """The form in which a target is kept.

    Attributes:
        shape: of one image.
        rounded: kept in float16, not in float32.
        made_by: SHA-256 of the file of the method that makes it; empty for the logits, which
            every method keeps as they are.
    """

    shape: tuple[int, ...]
    rounded: bool
    made_by: str

    @property
    def bytes(self) -> int:
        """For one image."""
        return math.prod(self.shape) * (2 if self.rounded else 4)


class Lesson:
    """A teacher, and what the runs that learn from it want to know of it.

    Args:
        teacher: in eval mode; its weights and statistics stay as they are.
        image_size: of all runs, in pixels.
    """

    def __init__(self, teacher: nn.Module, image_size: int):
        self.teacher = teacher
        self.targets: dict[str, Target] = {}
        """All that was asked for, by name."""
        self._methods: list[Method] = []
        self.outputs = look(teacher, torch.zeros(2, 3, image_size, image_size))
        """Logits and stages for two images."""
        self.shapes = stage_shapes(self.outputs[1])

    def ask(self, config: TrainConfig, student: Shapes) -> dict[str, Target]:
        """Ask for what a run needs.

        Args:
            config: the run's settings.
            student: (C, H, W) of the student's stages.

        Returns:
            The run's own targets, by name.

        Raises:
            UserError: the networks cannot be compared, or the method gives no targets.
        """
        method = build_method(config, student, self.shapes)
        with METHODS.blamed(config.method):
            found = check_targets(config.method, method.targets(*self.outputs), 2)
        own = {
            name: Target(
                tuple(value.shape[1:]),
                name in method.rounded,
                source_sha256(_own(type(method), Method)) if name != "logits" else "",
            )
            for name, value in found.items()
        }
        if own.keys() - self.targets.keys():
            self._methods.append(method)
            self.targets = {**own, **self.targets}  # as the first that asked makes it
        return own

    def open(
        self,
        cache: Cache,
        pixels: np.ndarray,
        facts: Facts,
        what: str,
        config: TrainConfig,
        tell: Tell = lambda event: None,
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
        group = {
            "kind": "targets",
            "pixels": dict(facts),
            "teacher": weights_sha256(self.teacher),
            "precision": str(precision),
            "device": device.type,
            "torch": torch.__version__,
            "kdtune": version("kdtune"),
            **made_by(self.teacher),
        }

        def build(names: Sequence[str], make: Make) -> None:
            guide = self._guide(device, config, pixels[:TEACHER_BATCH])
            wide = {name for name in names if not self.targets[name].rounded}
            while overflowed := self._fill(guide, pixels, names, wide, make):
                wide |= overflowed

        wanted = {name: {"name": name, **asdict(kept)} for name, kept in self.targets.items()}
        return cache.open(f"the teacher's targets of {what}", group, wanted, build, tell)

    def _guide(self, device: torch.device, config: TrainConfig, sample: np.ndarray) -> Network:
        """The teacher in the fastest precision that keeps the targets within `TOLERANCE`."""

        def network(precision: str) -> Network:
            settings = {"precision": precision, "compile": False}
            return Network(self.teacher, device, config.model_copy(update=settings))

        fast = network(config.precision)
        if fast.dtype == torch.float32:
            return fast
        # All that the teacher gives is judged, so that it does not depend on who asks.
        found = outputs(fast, sample)
        exact = network("float32")
        error = relative_error(found, outputs(exact, sample))
        return network(config.precision) if error <= TOLERANCE else exact

    def _fill(
        self,
        guide: Network,
        pixels: np.ndarray,
        names: Sequence[str],
        wide: set[str],
        make: Make,
    ) -> set[str]:
        """Make arrays and fill them; the names of those whose numbers float16 does not hold."""
        arrays = {}
        for name in names:
            shape = (len(pixels), *self.targets[name].shape)
            arrays[name] = make(name, shape, np.dtype(np.float32 if name in wide else np.float16))
        overflowed: set[str] = set()

        def fill(start: int) -> None:
            part = pixels[start : start + TEACHER_BATCH]
            for name, value in self._look(guide, part).items():
                if name in arrays:
                    kept = value.to(torch.float32 if name in wide else torch.float16)
                    if kept.isinf().any() and not value.isinf().any():
                        overflowed.add(name)
                    arrays[name][start : start + len(part)] = kept.numpy()

        threads = torch.get_num_threads()
        workers = usable_workers(MOST_THREADS) if guide.device.type == "cpu" else 1
        torch.set_num_threads(1)  # the threads below, being new, take this over
        try:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(fill, range(0, len(pixels), TEACHER_BATCH)):
                    pass
        finally:
            torch.set_num_threads(threads)
        return overflowed

    @torch.no_grad()
    def _look(self, guide: Network, pixels: np.ndarray) -> Parts:
        """The targets of a batch of pixels, on the CPU."""
        logits, features = guide(normalise(torch.from_numpy(pixels).to(guide.device)))
        found: Parts = {}
        for method in self._methods:
            found |= method.targets(logits, features)
        return {name: value.float().cpu() for name, value in found.items()}


@torch.no_grad()
def outputs(guide: Network, pixels: np.ndarray) -> list[Tensor]:
    """Logits and stages of a batch of pixels, in float32."""
    logits, features = guide(normalise(torch.from_numpy(pixels).to(guide.device)))
    return [output.float() for output in (logits, *features)]


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Largest error of any: root mean square of the difference over that of the exact.

    What is zero throughout has the error 0 if it was found to be so.
    """
    pairs = zip(found, exact, strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


def _own(part: type, base: type) -> tuple[type, ...]:
    """A class and those above it, up to one of them."""
    return part.__mro__[: part.__mro__.index(base) + 1]


def source_sha256(classes: Iterable[type]) -> str:
    """SHA-256 of the files that classes come from; of names without files."""
    digest = hashlib.sha256()
    for part in classes:
        digest.update(_code(part).encode())
    return digest.hexdigest()


def _code(part: type) -> str:
    """The module in which a class is written; the class's name where that has no source."""
    try:
        return inspect.getsource(sys.modules[part.__module__])
    except (OSError, TypeError, KeyError):
        return part.__qualname__


def made_by(teacher: nn.Module) -> dict[str, str]:
    """Versions of the libraries that may compute a teacher's outputs.

    Of timm only if the teacher has parts of its; what is of no library is in `weights_sha256`.
    """
    modules = {c.__module__ for part in teacher.modules() for c in type(part).__mro__}
    versions = {"torchvision": version("torchvision")}
    if any(module.partition(".")[0] == "timm" for module in modules):
        versions["timm"] = version("timm")
    return versions


_HASHES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a network's code, structure, weights and statistics, wherever these lie.

    Code is that of the modules that define its layers, but for those of `LIBRARIES`.

    A network is looked at once: it must not change.
    """
    if model not in _HASHES:
        _HASHES[model] = _weights_sha256(model)
    return _HASHES[model]


def _weights_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256(repr(model).encode())
    kinds = {type(part) for part in model.modules()}
    own = {_code(kind) for kind in kinds if kind.__module__.partition(".")[0] not in LIBRARIES}
    digest.update("".join(sorted(own)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
