"""Loss scales: the sizes of a loss's terms beside its classification loss, before any training."""

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from kdtune.config.strengths import STRENGTHS
from kdtune.config.train import TrainConfig
from kdtune.data.decoding import decode_images
from kdtune.data.splits import ImageData
from kdtune.data.transforms import normalise
from kdtune.methods import METHODS, build_method
from kdtune.methods.method import FeatureMaps
from kdtune.models import MODELS, build_model, compute_logits_and_features, stage_shapes
from kdtune.runtime.process import single_threaded
from kdtune.runtime.seeds import derive_seed

NUM_BATCHES, MAX_OUTPUT_BYTES = 4, 64 * 2**20
"""Maximum number of batches, and bytes of a network's outputs for them; it is at least one."""

_PROBE_WEIGHT = 1e6
"""Weight with which a term is measured: at 1, float32 would round small terms away."""

_Outputs = tuple[Tensor, FeatureMaps]


class LossScales:
    """Measures terms on a few training batches, which are not augmented.

    The CPU computes in float32 with one thread: the numbers do not depend on the machine's cores,
    and nothing waits for cores that trials keep busy. The student is untrained and in train mode,
    as in a run's first steps. A loss is taken to be linear in alpha and beta, so methods of
    plug-ins are measured like the built-in ones.

    Args:
        data: its first training images, in a seeded order, are used.
        image_size: height and width in pixels.
        teacher: in eval mode.
        seed: of the sweep; fixes images and initial weights.
    """

    def __init__(self, data: ImageData, image_size: int, teacher: nn.Module, seed: int):
        self._data, self._image_size = data, image_size
        self._seed = derive_seed(seed, "loss scales")
        order = np.random.default_rng(self._seed).permutation(len(data.train))
        self._image_order = order.tolist()
        self._student_outputs = lru_cache(maxsize=16)(self._run_student)
        self._teacher_outputs = lru_cache(maxsize=8)(partial(self._run_network, teacher))

    @single_threaded()
    @torch.no_grad()
    def measure(self, config: TrainConfig) -> dict[str, float]:
        """Return, by weight, its term over the classification loss if the weight is 1.

        A weight is missing if its term is not above 0, as of a method that lacks it.

        Args:
            config: settings of a run; its weights and seed do not matter.
        """
        with METHODS.blame_provider(config.method):
            base_loss, classification = self._sum_losses(config)
            losses = {w: self._sum_losses(config, w)[0] for w in STRENGTHS.values()}
        scales = {
            weight: (loss - base_loss) / _PROBE_WEIGHT / (classification or math.nan)
            for weight, loss in losses.items()
        }
        # Four digits, since further ones may differ between machines.
        return {k: float(f"{v:.4g}") for k, v in scales.items() if 0 < v < math.inf}

    def _sum_losses(self, config: TrainConfig, weight: str | None = None) -> tuple[float, float]:
        """Return loss and classification loss, summed over the batches, with a single weight."""
        weights = dict.fromkeys(STRENGTHS.values(), 0.0)
        if weight is not None:
            weights[weight] = _PROBE_WEIGHT
        students = self._student_outputs(config.model, config.batch_size)
        teachers = self._teacher_outputs(config.batch_size)
        labels = self._labels(config.batch_size)
        shapes = [stage_shapes(outputs[0][1]) for outputs in (students, teachers)]
        total = classification = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "method", config.model))
            method = build_method(config.model_copy(update=weights), *shapes)
            method.epoch = config.epochs  # no hint stage, and no term that is still faded in
            for student, teacher, batch_labels in zip(students, teachers, labels, strict=False):
                parts = method(*student, method.targets(*teacher), batch_labels)
                total += float(parts["loss"])
                classification += float(parts.get("classification", parts["loss"]))
        return total, classification

    def _indices(self, batch_size: int) -> Iterator[list[int]]:
        """Yield the indices of the images of each batch; only the first may be a smaller one."""
        for start in range(0, NUM_BATCHES * batch_size, batch_size):
            batch = self._image_order[start : start + batch_size]
            if not start or len(batch) == batch_size:
                yield batch

    def _labels(self, batch_size: int) -> Iterator[Tensor]:
        for indices in self._indices(batch_size):
            yield torch.tensor(self._data.train.select(indices).labels)

    def _run_student(self, model: str, batch_size: int) -> list[_Outputs]:
        with MODELS.blame_provider(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "student", model))
            student = build_model(model, len(self._data.classes), self._image_size)
            return self._run_network(student.train(), batch_size)

    def _run_network(self, network: nn.Module, batch_size: int) -> list[_Outputs]:
        outputs, num_bytes = list[_Outputs](), 0
        for indices in self._indices(batch_size):
            pixels = decode_images(self._data.train.select(indices), self._image_size, None)
            images = normalise(torch.from_numpy(pixels))
            logits, features = compute_logits_and_features(network, images)
            outputs.append((logits.float().cpu(), [stage.float().cpu() for stage in features]))
            num_bytes += sum(x.nbytes for x in chain([outputs[-1][0]], outputs[-1][1]))
            if num_bytes * (len(outputs) + 1) > MAX_OUTPUT_BYTES * len(outputs):
                break
        return outputs
