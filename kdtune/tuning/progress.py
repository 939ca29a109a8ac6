"""What a person sees while a sweep runs: a line for every view and for every trial that ends.

A view is what the cache of a node holds for all trials: decoded images, the teacher's targets.
"""

from collections.abc import Callable

from kdtune.cache import amount, describe
from kdtune.config import TrainConfig
from kdtune.inputs import keeps_targets
from kdtune.results import Event
from kdtune.run_files import say


class Progress:
    """Prints the ends of trials, with the cell's best so far; a fold over the log.

    What was in the log before `begin` is not printed.
    """

    def __init__(self) -> None:
        self.ended = 0
        self._say: Callable[[str], None] = lambda line: None
        self._of = ""
        self._best: dict[str, float] = {}
        self._views: list[Event] = []
        self._ways: dict[str, str] = {}
        self._epochs = {"kept": 0, "live": 0}

    def begin(self, total: int | None) -> None:
        """Print from now on; `total` is the number of all trials, None if nobody can tell."""
        self._say = say
        self._of = f"/{total}" if total is not None else ""

    def fold(self, event: Event) -> None:
        """Take an event of the log; print if it is the end of a trial, or about a view."""
        if event["event"] in ("sweep", "resumed", "confirm"):
            self._views += event["views"]["prepared"]
        elif event["event"] == "view":
            self._views.append(event)
            self._say(f"{event['trial_id']}: {describe(event)}")
        elif event["event"] == "asked":
            config = TrainConfig.check(event["config"])
            if config.teacher_model is not None:
                self._ways[event["trial_id"]] = "kept" if keeps_targets(config) else "live"
        elif event["event"] == "epoch":
            if way := self._ways.get(event["trial_id"]):
                self._epochs[way] += 1
        elif event["event"] == "ended":
            self._ended(event)
        elif event["event"] == "restarted":
            self._say(f"{event['trial_id']}: {event['reason']}; it is begun again")
        elif event["event"] == "exhausted":
            self._say(f"{event['method']}-{event['model']}: {event['reason']}")

    def saved(self) -> str:
        """What the views were good for, in a sentence; empty without views and without teacher."""
        said = []
        if self._epochs["kept"]:
            built = [e for e in self._views if e["kind"] == "targets" and e["state"] == "built"]
            seconds = sum(event["seconds"] for event in built)
            times = "once" if len(built) == 1 else f"{len(built)} times"
            ran = f"ran {times} ({seconds:.1f} s)" if built else "did not run"
            said.append(
                f"the teacher {ran} for {self._epochs['kept']} epochs that learned from it"
            )
        if self._epochs["live"]:
            said.append(f"the teacher ran live for {self._epochs['live']} epochs")
        if self._views:
            kept = [e["bytes"] for e in self._views if e["state"] in ("built", "found")]
            said.append(f"{amount(sum(kept))} in the cache")
        return f"Views: {'; '.join(said)}." if said else ""

    def _ended(self, event: Event) -> None:
        self.ended += 1
        cell = f"{event['method']}-{event['model']}"
        accuracy = event["best_validation_accuracy"]
        figures = ""
        if accuracy is not None:
            self._best[cell] = max(self._best.get(cell, 0.0), accuracy)
            figures = f" {100 * accuracy:.2f} % (cell's best {100 * self._best[cell]:.2f} %)"
        self._say(
            f"[{self.ended}{self._of}] {event['trial_id']} {event['state']}{figures}: "
            f"{event['reason']}"
        )
