"""Plans as text, and beside them what sweeps took."""

import json

import pytest
from report_sweeps import epoch, proposed, sweep_started

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.events import Completed, SweepResumed
from kdtune.log.folder import SweepFolder
from kdtune.reports.page.sections.search import plan_section
from kdtune.reports.tables.plan import plan_vs_actual, read_plan
from kdtune.reports.text.plan import plan_text

ROW = {
    "slots": 2, "wall_seconds": 100.0, "training_seconds": 150.0, "startup_seconds": 20.0,
    "waiting_seconds": 10.0, "driver_seconds": 5.0, "trials": 4, "stopped": 1, "epochs": 10,
    "saved_epochs": 2, "max_running": 2, "idle_share": 0.25, "driver_share": 0.05,
    "cache_bytes": 1e6, "checkpoint_bytes": 2e6, "log_bytes": 1e5, "node_memory_bytes": 3e9,
    "device_memory_bytes": 0.0, "limit": "training, 75 %",
}  # fmt: skip
PLAN = {"slots": 2, "rows": [ROW, {**ROW, "slots": 1000}], "notes": ["Measured.", "Imagined."]}
CONFIG = SweepConfig.parse({"name": "s", "data": "d", "trials": 4}).model_dump(mode="json")


def at(event, session_seconds):
    return event.model_copy(update={"session_seconds": session_seconds})


def events_of(**change):
    """Return the events of a sweep that was resumed with other settings."""
    started = sweep_started(CONFIG)
    resumed = SweepResumed(
        **started.model_dump(exclude={"kind", "config"}), config={**CONFIG, **change}
    )
    epochs = [epoch("at-A-0", n, 0.5, seconds) for n, seconds in enumerate((4.0, 6.0, 5.0), 1)]
    return [
        at(started, 1.0), at(proposed("at-A-0"), 2.0), at(epochs[0], 10.0), at(epochs[1], 21.0),
        at(resumed, 5.0), at(epochs[2], 15.0), at(Completed(), 35.0),
    ]  # fmt: skip


EVENTS = events_of(confirm=True)


def test_plan_against_actual():
    table = plan_vs_actual(PLAN, EVENTS).set_index("what")
    assert table.loc["wall seconds"].tolist() == [100, 20 + 30, 0.5]
    assert table.loc["device seconds"].tolist() == [150, 15, 0.1]
    assert table.loc["epochs"].tolist() == [10, 3, 0.3]
    assert table.loc["trials"].tolist() == [4, 1, 0.25]


@pytest.mark.parametrize("change", [{"trials": 9}, {"models": ["A"]}, {"max_concurrent": 1}])
def test_a_sweep_that_was_changed_after_the_plan_has_no_ratio_to_it(tmp_path, change):
    events = events_of(**change)
    assert plan_vs_actual(PLAN, events)["actual_over_planned"].isna().all()
    folder = Folder(tmp_path)
    folder.load_events = lambda: events
    folder.plan_path.write_text(json.dumps(PLAN))
    grid, _ = plan_section(folder)
    assert "The sweep was changed after the plan." in str(grid)
    assert grid.rows[0] == ("wall", "1 min 40 s", "50 s", "")


@pytest.mark.parametrize("count", [4, 5])
def test_time_in_which_no_driver_ran_does_not_count(count):
    assert plan_vs_actual(PLAN, EVENTS[:count])["actual"][0] == 20


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_a_plan_for_people(form):
    text = plan_text(PLAN, form)
    assert "2 (here)" in text and "1,000" in text
    assert "1 min 40 s" in text and "3.1 MB" in text and "3.0 GB" in text
    assert "1,000: training, 75 %." in text and text.endswith("Imagined.\n")


def test_a_plan_for_programs():
    assert json.loads(plan_text(PLAN, "json")) == PLAN
    assert plan_text(PLAN, "csv").splitlines()[0].startswith("slots,wall_seconds,training_seconds")


class Folder(SweepFolder):
    def load_events(self):
        return EVENTS


def test_the_report_says_nothing_without_a_plan_and_refuses_a_damaged_one(tmp_path):
    folder = Folder(tmp_path)
    assert not list(plan_section(folder))
    folder.plan_path.write_text(json.dumps(PLAN))
    grid, words = plan_section(folder)
    assert grid.rows[0] == ("wall", "1 min 40 s", "50 s", "0.50")
    assert grid.rows[2] == ("epochs", "10", "3", "0.30")
    assert words.text == "Imagined."
    for text in ("{", "[]", "{}"):
        folder.plan_path.write_text(text)
        with pytest.raises(UserError, match="is damaged; remove it"):
            read_plan(folder)
