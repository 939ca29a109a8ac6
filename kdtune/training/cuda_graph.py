"""Training steps that repeat a CUDA graph, so that the GPU does not wait for Python.

A step of a small student is a few hundred kernels of some microseconds each, which Python starts
more slowly than a GPU runs them. A graph starts all of them at once. It lives for one epoch, since
learning rate, stage of a method and modes of layers are constants of it.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdtune.errors import first_line
from kdtune.methods.method import TensorsByName
from kdtune.training.step import TrainingStep, make_scaler


class Recorder(ABC):
    """Records a training step, so that it can be repeated.

    Attributes:
        stream: CUDA stream on which steps run and are recorded; None without CUDA.
    """

    stream: torch.cuda.Stream | None = None

    @abstractmethod
    def record(self, run_step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Record a step without running it; return what repeats it, and its loss."""


class CudaGraphRecorder(Recorder):
    """Records steps as CUDA graphs that share their memory."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None

    def record(self, run_step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The earlier graph keeps the memory alive until this one has taken it over.
        pool = None if self._graph is None else self._graph.pool()
        # Other threads may allocate memory meanwhile, such as pinned memory for the next batch.
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            loss = run_step()
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        self._graph = graph
        return graph.replay, loss


@dataclass(eq=False)
class GraphedStep(TrainingStep):
    """A training step that is recorded in each epoch, and repeated on buffers.

    The first batch of an epoch runs as usual, which allocates what a graph cannot. The second one
    of the same shape is recorded. Batches of other shapes run as usual. If a step cannot be
    recorded, a warning says so once, and all steps run as usual.
    """

    recorder: Recorder

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stream, self._can_record = self.recorder.stream, True

    def start_epoch(self) -> None:
        super().start_epoch()
        self._shapes: list[Any] = []
        self._buffers: list[Tensor] = []
        self._replay: Callable[[], object] | None = None

    def __call__(self, images: Tensor, labels: Tensor, targets: TensorsByName | None) -> Tensor:
        batch = [images, labels, *(targets or {}).values()]
        shapes = [list(targets or {}), *((value.shape, value.dtype) for value in batch)]
        if not self._shapes:
            self._shapes = shapes
            return self._run_first_step(images, labels, targets)
        if shapes == self._shapes and self._replay is None and self._can_record:
            self._record_step(batch, targets)
        if shapes != self._shapes or self._replay is None:
            return super().__call__(images, labels, targets)
        for buffer, value in zip(self._buffers, batch, strict=True):
            buffer.copy_(value)
        self._replay()
        return self._loss

    def _run_first_step(
        self, images: Tensor, labels: Tensor, targets: TensorsByName | None
    ) -> Tensor:
        before = self._plain_attributes()
        loss = super().__call__(images, labels, targets)
        if self._can_record and self._plain_attributes() != before:
            self._give_up("a layer, or the method, changes an attribute of itself in each step")
        return loss

    def _plain_attributes(self) -> list[dict[str, Any]]:
        """Return the numbers and words in student and method, which a graph would not change."""
        return [
            {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
            for root in (self.student.model, self.method)
            for module in root.modules()
        ]

    def _record_step(self, batch: list[Tensor], targets: TensorsByName | None) -> None:
        self._buffers = [value.clone() for value in batch]
        images, labels, *values = self._buffers
        buffered = dict(zip(targets, values, strict=True)) if targets is not None else None
        run_step = partial(super().__call__, images, labels, buffered)
        scaler_state = self.scaler.state_dict()
        try:
            self._replay, self._loss = self.recorder.record(run_step)
        except RuntimeError as error:
            self._give_up(first_line(error).rstrip("."))
            self.scaler = make_scaler(self.student)  # the old one may be in the middle of a step
            self.scaler.load_state_dict(scaler_state)
            for name in ("grad_scale", "found_inf"):  # tensors that it gave to the optimizer
                vars(self.optimizer).pop(name, None)

    def _give_up(self, reason: str) -> None:
        self._can_record = False
        message = f"Training steps run without a CUDA graph: {reason}."
        warnings.warn(message, RuntimeWarning, stacklevel=2)


@contextmanager
def use_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Run what follows on a CUDA stream, in order with the current one; None changes nothing."""
    if stream is None:
        yield
        return
    outer = torch.cuda.current_stream(stream.device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)
