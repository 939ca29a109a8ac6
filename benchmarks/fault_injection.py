"""Run kdtune with a fault that waits in its driver or in the processes of its trials.

    python fault_injection.py FAULT ARGUMENT...

FAULT is JSON: ``where`` it waits, or the ``trial`` that it hits after an ``epoch`` and what that
trial is to ``do``; the rest are its numbers. In the folder ``marks`` it counts how often it hit.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import kdtune.data.augmented_views
import kdtune.data.batches
import kdtune.data.decoding
import kdtune.storage.array_cache
import kdtune.training.loop
import kdtune.tuning.driver.driver
import kdtune.tuning.trials.trial_process
from kdtune.cli.commands import main as kdtune_main
from kdtune.log.event_log import EventLog
from kdtune.log.events import Event
from kdtune.tuning.driver.driver import Workplace
from kdtune.tuning.trials.results import EpochReported, TrialResult
from kdtune.tuning.trials.trial_process import TrialProcess

Fault = dict[str, Any]


class FaultyTrialProcess(TrialProcess):
    """A trial process in which a fault waits."""

    def iter_results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[TrialResult, None, None]:
        """Yield the results up to the fault."""
        fault = json.loads(os.environ["KDTUNE_FAULT"])
        with contextlib.ExitStack() as stack:
            stack.callback(patch.stopall)  # the next trial trains as usual
            _install_in_trial(fault, stack)
            for result in super().iter_results(trial_id, config):
                yield result
                epoch = result.metrics.epoch if isinstance(result, EpochReported) else 0
                if fault.get("trial") == trial_id and epoch == fault["epoch"]:
                    if _claim_occurrence(fault):
                        _inject(fault["do"])


def _claim_occurrence(fault: Fault) -> bool:
    """Return True if the fault may happen once more."""
    marks = Path(fault["marks"])
    number = len(list(marks.iterdir()))
    if number >= fault.get("times", 1):
        return False
    (marks / str(number)).touch()
    return True


def _inject(action: str) -> None:
    if action == "hang":
        _hang()
    elif action == "hang in a batch":
        patch.object(kdtune.data.batches.Batches, "_gather_batch", _hang).start()
    else:
        patch.object(kdtune.training.loop, "train_epoch", partial(_spoiled_pass, action)).start()


def _hang(*_: Any) -> None:
    time.sleep(1e6)


def _spoiled_pass(action: str, *arguments: Any, **keywords: Any) -> dict[str, float]:
    if action == "raise":
        raise RuntimeError("injected")
    if action == "lose the GPU":  # for good: nothing restores these two in this process
        trial_process = kdtune.tuning.trials.trial_process
        _patch(trial_process, "is_gpu_lost", lambda: True)
        _patch(trial_process, "describe_gpu", lambda: "injected")
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return {"loss": float(action), "accuracy": 0.0}


def _patch(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def _limit_file_size(size: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _install_in_trial(fault: Fault, stack: contextlib.ExitStack) -> None:
    """Install a fault in this process of a trial, up to the trial's end."""
    where = fault.get("where")
    if where == "checkpoint":
        save, calls = torch.save, count(1)

        def save_half(content: Any, file: Any) -> None:
            save(content, file)
            if next(calls) == fault["call"] and _claim_occurrence(fault):
                file.flush()
                file.truncate(file.tell() // 2)
                if fault["driver too"]:
                    os.kill(int(os.environ["KDTUNE_DRIVER"]), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        patch.object(torch, "save", save_half).start()
    elif where == "full checkpoint":
        _limit_file_size(fault["bytes"])
        stack.callback(_limit_file_size, None)
    elif where == "decoding":
        decode, images = kdtune.data.decoding._decode_image, count(1)

        def decode_or_hang(*arguments: Any) -> Any:
            if next(images) == fault["image"] and _claim_occurrence(fault):
                _hang()
            return decode(*arguments)

        patch.object(kdtune.data.decoding, "_decode_image", decode_or_hang).start()
    elif where == "view ahead":  # as if views were large, and a core idle
        for name in ("count_processes", "count_idle_cores"):
            patch.object(kdtune.data.augmented_views, name, lambda *_: 1).start()


def _die_at(call: int, function: Callable[..., Any], before: Callable[..., Any]) -> Any:
    """Return the function, whose given call runs `before` and kills the process."""
    calls = count(1)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return wrapped


def _install_in_driver(fault: Fault) -> None:
    """Install a fault in this process, which will be a driver."""
    match fault:
        case {"where": "log", "call": call, "share": share}:

            def write_part(log: EventLog, line: bytes) -> None:
                os.write(log._file.fileno(), line[: int(share * len(line))])

            _patch(EventLog, "_write_line", _die_at(call, EventLog._write_line, write_part))
        case {"where": "view", "call": call}:
            commit = kdtune.storage.array_cache._commit_array
            dying = _die_at(call, commit, lambda *_: None)
            _patch(kdtune.storage.array_cache, "_commit_array", dying)
        case {"where": "table", "call": call}:
            _patch(Path, "replace", _die_at(call, Path.replace, lambda *_: None))
        case {"where": "full view", "bytes": size}:
            cache = kdtune.storage.array_cache.ArrayCache
            _limit_size_during(cache, "_build_arrays", size)
        case {"where": "full tables", "bytes": size}:
            _limit_size_during(Workplace, "write_results", size)
        case {"where": "full driver", "bytes": size}:
            append, is_limited = EventLog.append, [False]

            def limited(log: EventLog, event: Event) -> None:
                is_named = log.path.parent.name[:1] != "."
                if is_named and not is_limited[0]:  # Ray has started: it needs room, too
                    is_limited[0] = True
                    _limit_file_size(log._valid_bytes + size)
                append(log, event)

            _patch(EventLog, "append", limited)
        case {"where": "clock"}:
            original_clock, shift = time.time, [0.0]

            def stepped() -> float:
                shift[0] -= random.choice((0, 3600))
                return original_clock() + shift[0]

            _patch(time, "time", stepped)


def _limit_size_during(owner: type, name: str, size: int) -> None:
    """Limit the size of files from the first call of a method on."""
    method = getattr(owner, name)

    def limited(*arguments: Any) -> Any:
        _limit_file_size(size)
        return method(*arguments)

    _patch(owner, name, limited)


def main() -> None:
    """Run `kdtune` with a fault."""
    fault = json.loads(sys.argv[1])
    os.environ["KDTUNE_FAULT"], os.environ["KDTUNE_DRIVER"] = sys.argv[1], str(os.getpid())
    _install_in_driver(fault)
    if fault.keys() & {"where", "do"}:
        _patch(kdtune.tuning.driver.driver, "TrialProcess", FaultyTrialProcess)
    sys.argv = ["kdtune", *sys.argv[2:]]
    kdtune_main()


if __name__ == "__main__":
    main()
