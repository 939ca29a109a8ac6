"""Calls of a tracker, and its failure."""

from event_logs import add_times, sweep_opening, trial_events

from kdtune.trackers.tracker import TrackerFold

EVENTS = list(
    add_times(
        [sweep_opening(), *trial_events(0, [0.5, 0.75], "finished"), *trial_events(1, [0.5])]
    )
)


class Listener:
    """Records its calls; fails at an event of this kind."""

    def __init__(self, whole=(), fails=None):
        self.whole, self.fails, self.told = whole, fails, []

    def setup(self, opened):
        self.tell(opened)

    def is_trial_logged(self, asked):
        return asked.trial_id in self.whole

    def tell(self, event, device_seconds=None):
        self.told.append((event.kind, getattr(event, "trial_id", None)))
        self.device_seconds = device_seconds
        if event.kind == self.fails:
            raise ConnectionError("nobody answers\nat all")

    log_trial_start = log_epoch = log_trial_end = tell

    def close(self):
        self.told.append("closed")


def calls_of(listener, events, live, say=print):
    tracked = TrackerFold("X", listener, say)
    for event in events[: len(events) - live]:
        tracked.fold(event)
    assert listener.told == []
    tracked.start_logging()
    for event in events[len(events) - live :]:
        tracked.fold(event)
    tracked.close()
    return listener.told


def test_trials_that_are_logged_completely_are_not_logged_again():
    of_first = [
        (kind, "at-A-000")
        for kind in ("trial_proposed", "epoch_finished", "epoch_finished", "trial_ended")
    ]
    of_second = [(kind, "at-A-001") for kind in ("trial_proposed", "epoch_finished")]
    begun, closed = ("sweep_started", None), "closed"
    assert calls_of(Listener(), EVENTS, 0) == [begun, *of_first, *of_second, closed]
    assert calls_of(Listener(), EVENTS, 4) == [begun, *of_first, *of_second, closed]
    assert calls_of(Listener(whole=["at-A-000"]), EVENTS, 1) == [begun, *of_second, closed]
    # One that has not ended is told whatever is there.
    assert calls_of(Listener(whole=["at-A-001"]), EVENTS, 1)[5:7] == of_second


def test_the_end_of_a_trial_has_the_seconds_of_all_epochs():
    for live in (0, 1, 3):
        listener = Listener()
        calls_of(listener, EVENTS[:5], live)
        assert listener.device_seconds == 3.0


def test_a_failure_is_one_warning_and_ends_the_logging():
    for fails, count in (("sweep_started", 1), ("epoch_finished", 3), ("trial_ended", 5)):
        said = []
        *events, last = calls_of(Listener(fails=fails), EVENTS, 5, said.append)
        assert len(events) == count and last == "closed"
        assert said == ["X: nobody answers; it gets no more metrics until the sweep is resumed"]
