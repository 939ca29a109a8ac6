"""Ray's side of what runs next: trials that lost their process first, then new ones."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from kdtune.results import Event
from kdtune.tuning.decisions import Decisions
from kdtune.tuning.under_way import Trial


class Queue(Searcher):
    """Hands out trials.

    Args:
        decisions: of the search, or of its confirmation.
        append: writes an event to the log and folds it.
    """

    def __init__(self, decisions: Decisions, append: Callable[[Event], None]):
        super().__init__()
        self.decisions, self.under_way, self.append = decisions, decisions.under_way, append

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Hand out a trial; `trial_id` is Ray's."""
        if self.decisions.interrupts.requested:
            return Searcher.FINISHED
        trial = self._again() or self._new() or self._again(alone=True)
        if trial is not None:
            config = {**trial.asked["config"], **self._places(trial)}
            return {"trial_id": trial.asked["trial_id"], "config": config, "alone": trial.alone}
        # Ray does not ask again once it was told that all is finished, but a trial that is under
        # way may lose its process.
        return None if self.under_way.trials else Searcher.FINISHED

    def _places(self, trial: Trial) -> dict[str, Any]:
        """Where data and teacher lie now: they may have been moved since it was asked for."""
        sweep = self.decisions.sweep
        places = {
            "data_dir": sweep.data,
            "data_root": sweep.data_root,
            "cache_gb": sweep.cache_gb,
        }
        taught = trial.asked["config"]["teacher_model"] is not None
        return {**places, "teacher_model": sweep.teacher} if taught else places

    def _again(self, alone: bool = False) -> Trial | None:
        """A trial that was begun before; those for which nothing is left end here."""
        while (trial := self.under_way.take(alone)) is not None:
            if (end := self.decisions.end(trial)) is None:
                return trial
            self.append(trial.ended(*end))
        return None

    def _new(self) -> Trial | None:
        """A trial that was not begun before."""
        while (event := self.decisions.propose()) is not None:
            self.append(event)
            if event["event"] == "asked":
                return self.under_way.take()
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which sees every result, writes them to the log."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler writes the ends of trials to the log."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the searcher are never read back, so they are kept empty."""
        return {}
