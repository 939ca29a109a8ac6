"""The searcher of Ray Tune: hands out trials that lost their process, then new ones."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ray.tune.search import Searcher

from kdtune.log.events import Event, SpaceExhausted
from kdtune.runtime.console import say
from kdtune.tuning.cluster.placement import Allocation, Node, PendingTrial, Slots
from kdtune.tuning.cluster.ray_private import NotSaved
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.scheduling.trial_state import ActiveTrial

FINISHED: str = Searcher.FINISHED


@dataclass(eq=False)
class LogSearcher(NotSaved, Searcher):
    """Hands out trials for which there is room; `append_event` logs and folds an event."""

    policy: SchedulingPolicy
    append_event: Callable[[Event], None]
    slots: Slots
    say: Callable[[str], None] = say
    _unplaceable: list[str] = field(default_factory=list)
    _known_nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.active_trials = self.policy.active_trials

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return what the process of the next trial gets; `trial_id` is Ray's."""
        if self.policy.stop_requested:
            return FINISHED
        self.slots.release_finished(self.active_trials.running)
        self._warn_unplaceable()
        # Tune asks at every turn of its loop, so this shortcut matters.
        if self.active_trials.running and not self.slots.has_room():
            return None
        while (chosen := self.slots.choose_next(pending := self._pending_trials())) is not None:
            chosen_trial, allocation = chosen
            chosen_id = str(chosen_trial.key)
            if chosen_trial.key == chosen_trial.cell:
                self.append_event(event := self.policy.propose(chosen_trial.cell))
                if isinstance(event, SpaceExhausted):
                    continue
                chosen_id = event.trial_id
            self.slots.allocations[chosen_id] = allocation
            return self._ray_config(self.active_trials.mark_running(chosen_id), allocation)
        # After FINISHED Tune never asks again, but an active trial may lose its process.
        return None if pending or self.active_trials.by_id else FINISHED

    def _pending_trials(self) -> list[PendingTrial]:
        """Return earlier trials, then new ones; last those for which a whole device must idle."""
        for trial in self.active_trials.pending:
            if (end := self.policy.end_of(trial)) is not None:
                self.append_event(trial.make_end_event(*end))
        pending = [
            PendingTrial(trial.trial_id, trial.proposal.cell, trial.exclusive)
            for trial in self.active_trials.pending
        ]
        pending += [PendingTrial(cell, cell) for cell in self.policy.next_cells()]
        return sorted(pending, key=lambda trial: trial.exclusive)

    def _warn_unplaceable(self) -> None:
        """Say, once, of which students no trial fits on any node any more."""
        if (nodes := list(self.slots.nodes())) == self._known_nodes:
            return
        known, unplaceable = self._unplaceable, self.slots.unplaceable_models()
        for model in [model for model in unplaceable if model not in known]:
            self.say(f"no node has room for trials of {model} now: they wait until one has")
        self._known_nodes, self._unplaceable = nodes, unplaceable

    def _ray_config(self, trial: ActiveTrial, allocation: Allocation) -> dict[str, Any]:
        sweep, proposed = self.policy.sweep, trial.proposal.config
        config = {**proposed, **sweep.locations(proposed["teacher_model"] is not None)}
        return {"trial_id": trial.trial_id, "config": config, "allocation": asdict(allocation)}

    def on_trial_complete(self, trial_id: str, **ending: Any) -> None:
        """Do nothing: the scheduler logs the ends of trials."""
