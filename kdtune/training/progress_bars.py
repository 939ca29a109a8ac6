"""Progress bars of a run in a notebook: one of its epochs, and one of the steps of an epoch."""

import sys
import warnings
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings(action="ignore", category=TqdmWarning):
    from tqdm.auto import tqdm  # it warns without ipywidgets, and then draws with text


class ProgressBars:
    """The two bars of one run.

    Args:
        name: of the run.
        epoch: last epoch that is trained; 0 before the first.
        epochs: of the run.
        steps: of an epoch; None if their number is not known.
    """

    def __init__(self, name: str, epoch: int, epochs: int, steps: int | None):
        bar = {"file": sys.stdout, "dynamic_ncols": True}  # tqdm's own stderr is red in a notebook
        self._run: Any = tqdm(desc=name, initial=epoch, total=epochs, unit="epoch", **bar)
        self._epoch: Any = tqdm(desc="epoch", total=steps, unit="step", leave=False, **bar)

    def add_step(self) -> None:
        """Count a step."""
        self._epoch.update()

    def add_epoch(self, figures: dict[str, str]) -> None:
        """Count an epoch, and show its figures."""
        self._run.set_postfix(figures, refresh=False)
        self._run.update()
        self._epoch.reset()

    def close(self) -> None:
        """Leave the bar of the epochs as it is."""
        self._epoch.close()
        self._run.close()
