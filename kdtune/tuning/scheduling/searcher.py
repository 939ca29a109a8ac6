"""Ray's side of what runs next: trials that lost their process first, then new ones."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from kdtune.log.events import Event, cell_of
from kdtune.runtime.console import say
from kdtune.tuning.cluster.placement import Node, Place, Slots, Waiting
from kdtune.tuning.scheduling.policy import Decisions
from kdtune.tuning.scheduling.trial_state import Trial


class Queue(Searcher):
    """Hands out trials for which there is room.

    Args:
        decisions: of the search, or of its confirmation.
        append: writes an event to the log and folds it.
        slots: where there is room.
        say: takes what is worth telling a person.
    """

    def __init__(
        self,
        decisions: Decisions,
        append: Callable[[Event], None],
        slots: Slots,
        say: Callable[[str], None] = say,
    ):
        super().__init__()
        self.decisions, self.under_way, self.append = decisions, decisions.under_way, append
        self.slots, self.say = slots, say
        self._lacking: list[str] = []
        self._nodes: list[Node] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Hand out a trial; `trial_id` is Ray's."""
        if self.decisions.interrupts.requested:
            return Searcher.FINISHED
        self.slots.settle(self.under_way.at_work)
        self._tell()
        # Asked at every turn of Ray's loop, this is the quick way out.
        if self.under_way.at_work and not self.slots.any_room():
            return None
        while (chosen := self.slots.choose(waiting := self._waiting())) is not None:
            one, place = chosen
            name = str(one.key)
            if one.key == one.cell:
                self.append(event := self.decisions.propose(one.cell))
                if event["event"] != "asked":
                    continue
                name = event["trial_id"]
            self.slots.hold(name, place)
            return self._settings(self.under_way.take(name), place)
        # Ray does not ask again once it was told that all is finished, but a trial that is under
        # way may lose its process.
        return None if waiting or self.under_way.trials else Searcher.FINISHED

    def _waiting(self) -> list[Waiting]:
        """Trials that were begun before, then new ones; at last those that need a device alone.

        They wait since a device that is kept free would be idle.
        """
        for trial in self.under_way.waiting:
            if (end := self.decisions.end(trial)) is not None:
                self.append(trial.ended(*end))
        again = [
            Waiting(trial.asked["trial_id"], cell_of(trial.asked), trial.alone)
            for trial in self.under_way.waiting
        ]
        new = [Waiting(cell, cell) for cell in self.decisions.turns()]
        return sorted([*again, *new], key=lambda one: one.alone)

    def _tell(self) -> None:
        """Say for which students no node is large enough any more."""
        if (nodes := list(self.slots.nodes())) == self._nodes:
            return
        self._nodes, lacking = nodes, self.slots.lacking()
        for model in lacking:
            if model not in self._lacking:
                self.say(f"no node has room for a trial of {model} any more: they wait for one")
        self._lacking = lacking

    def _settings(self, trial: Trial, place: Place) -> dict[str, Any]:
        """What the process of a trial is given."""
        sweep, asked = self.decisions.sweep, trial.asked["config"]
        # Data and teacher may have been moved since it was asked for.
        config = {**asked, **sweep.source._asdict(), "cache_gb": sweep.cache_gb}
        if asked["teacher_model"] is not None:
            config["teacher_model"] = sweep.teacher
        return {"trial_id": trial.asked["trial_id"], "config": config, "place": asdict(place)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which sees every result, writes them to the log."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler writes the ends of trials to the log."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the searcher are never read back, so they are kept empty."""
        return {}
