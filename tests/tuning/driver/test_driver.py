"""Messages of a driver when its sweep is resumed."""

from pathlib import Path
from types import SimpleNamespace

from event_logs import OPENING_FIELDS

from kdtune.log.events import SweepResumed
from kdtune.tuning.driver.driver import Driver


def opening(**environment):
    return SweepResumed(spaces={}, **{**OPENING_FIELDS, "config": {}, "environment": environment})


def test_versions_that_changed_are_named_on_resume_but_not_those_of_an_older_log():
    said, progress = [], SimpleNamespace(num_ended=3)
    screen = SimpleNamespace(say=said.append, warn=said.append)
    policy = SimpleNamespace(active_trials=SimpleNamespace(by_id={}))
    driver = SimpleNamespace(
        policy=policy, screen=screen, progress=progress, noun="trials",
        folder=SimpleNamespace(path=Path("results/x")),
    )  # fmt: skip
    earlier = opening(torch="2.14.1", nvidia_driver="535.104.05")
    now = opening(torch="2.14.1", nvidia_driver="570.86.15", cudnn="9.24.0")
    log = SimpleNamespace(truncated_bytes=0)
    Driver.report_resumed(driver, log, earlier, now)
    change = "nvidia_driver was 535.104.05 and is 570.86.15 now: results may differ a little"
    assert said == ["results/x: 3 trials have ended", change]
