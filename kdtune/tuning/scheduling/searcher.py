"""Ray's side of what runs next: trials that lost their process first, then new ones."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from kdtune.log.events import Event, SpaceExhausted
from kdtune.runtime.console import say
from kdtune.tuning.cluster.placement import Allocation, Node, PendingTrial, Slots
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.scheduling.trial_state import ActiveTrial


class LogSearcher(Searcher):
    """Hands out trials for which there is room.

    Args:
        decisions: of the search, or of its confirmation.
        append: writes an event to the log and folds it.
        slots: where there is room.
        say: takes what is worth telling a person.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        append_event: Callable[[Event], None],
        slots: Slots,
        say: Callable[[str], None] = say,
    ):
        super().__init__()
        self.policy, self.active_trials, self.append_event = (
            policy,
            policy.active_trials,
            append_event,
        )
        self.slots, self.say = slots, say
        self._unplaceable: list[str] = []
        self._known_nodes: list[Node] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Hand out a trial; `trial_id` is Ray's."""
        if self.policy.interrupts.stop_requested:
            return Searcher.FINISHED
        self.slots.release_finished(self.active_trials.running)
        self._warn_unplaceable()
        # Asked at every turn of Ray's loop, this is the quick way out.
        if self.active_trials.running and not self.slots.has_room():
            return None
        while (
            chosen := self.slots.choose_next(pending_trials := self._pending_trials())
        ) is not None:
            pending, allocation = chosen
            chosen_id = str(pending.key)
            if pending.key == pending.cell:
                self.append_event(event := self.policy.propose(pending.cell))
                if isinstance(event, SpaceExhausted):
                    continue
                chosen_id = event.trial_id
            self.slots.allocate(chosen_id, allocation)
            return self._ray_config(self.active_trials.mark_running(chosen_id), allocation)
        # Ray does not ask again once it was told that all is finished, but a trial that is under
        # way may lose its process.
        return None if pending_trials or self.active_trials.by_id else Searcher.FINISHED

    def _pending_trials(self) -> list[PendingTrial]:
        """Trials that were begun before, then new ones; at last those that need a device alone.

        They wait since a device that is kept free would be idle.
        """
        for trial in self.active_trials.pending:
            if (end := self.policy.end_of(trial)) is not None:
                self.append_event(trial.make_end_event(*end))
        started_before = [
            PendingTrial(trial.trial_id, trial.proposal.cell, trial.exclusive)
            for trial in self.active_trials.pending
        ]
        new_trials = [PendingTrial(cell, cell) for cell in self.policy.next_cells()]
        return sorted([*started_before, *new_trials], key=lambda pending: pending.exclusive)

    def _warn_unplaceable(self) -> None:
        """Say for which students no node is large enough any more."""
        if (nodes := list(self.slots.nodes())) == self._known_nodes:
            return
        self._known_nodes, unplaceable = nodes, self.slots.unplaceable_models()
        for model in unplaceable:
            if model not in self._unplaceable:
                self.say(f"no node has room for a trial of {model} any more: they wait for one")
        self._unplaceable = unplaceable

    def _ray_config(self, trial: ActiveTrial, allocation: Allocation) -> dict[str, Any]:
        """What the process of a trial is given."""
        sweep, proposed = self.policy.sweep, trial.proposal.config
        config = {**proposed, **sweep.locations(proposed["teacher_model"] is not None)}
        return {"trial_id": trial.trial_id, "config": config, "allocation": asdict(allocation)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which sees every result, writes them to the log."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler writes the ends of trials to the log."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the searcher are never read back, so they are kept empty."""
        return {}
