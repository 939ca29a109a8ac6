"""Lines about a sweep's events, and the live table of its cells."""

import pytest
from display_events import AT, KD, TARGETS, Shown, two_slots
from event_logs import make_metrics
from sweep_harness import SweepHarness

from kdtune.log.events import (
    CacheUpdated,
    Completed,
    ConfirmStarted,
    EpochFinished,
    SpaceExhausted,
    TrialRestarted,
)
from kdtune.tuning.display.screen import LineKind

DETAIL, INFO, WARNING = LineKind


def test_every_event_that_matters_is_a_line_of_its_kind():
    shown = Shown({AT: 4, KD: 5})
    shown.trial("a", accuracy=0.9)
    shown.trial("b", accuracy=0.8, state="stopped")
    shown.trial("c", accuracy=0.95, state="diverged")
    shown.propose("d")
    shown.tell(TrialRestarted, "d", cause="process_died", reason="its process died")
    shown.end("d", "crashed", None)
    shown.tell(CacheUpdated, "e", progress=TARGETS.model_copy(update={"state": "waiting"}))
    shown.tell(SpaceExhausted, cell=KD, reason="no point is left")
    assert shown.said == [
        (DETAIL, "[1/9] a finished 90.00 % (cell's best 90.00 %): why"),
        (DETAIL, "[2/9] b stopped 80.00 % (cell's best 90.00 %): why"),
        (WARNING, "[3/9] c diverged 95.00 % (cell's best 90.00 %): why"),
        (WARNING, "d: its process died; restarted"),
        (WARNING, "[4/9] d crashed: why"),
        (INFO, "e: waiting for targets, which another process is building"),
        (INFO, "kd-B: no point is left"),
    ]


def test_a_repeat_is_shown_with_its_candidate():
    shown = Shown({AT: 2})
    shown.trial("a", accuracy=0.9)
    shown.trial("b", accuracy=0.8, candidate="a", origin="repeat")
    assert shown.said[-1][1] == "[2/2] b (repeat of a) finished 80.00 % (cell's best 85.00 %): why"


def test_earlier_events_are_counted_but_not_reported():
    shown = Shown({AT: None}, started=False)
    shown.trial("a", accuracy=0.9)
    assert shown.said == []
    shown.display.start(shown.goal, two_slots())
    shown.trial("b", accuracy=0.8)
    assert shown.said == [(DETAIL, "[2] b finished 80.00 % (cell's best 90.00 %): why")]


def warnings(shown):
    return [text.partition(":")[0] for kind, text in shown.said if kind is WARNING]


def test_a_second_kind_of_gpu_is_said_once_also_after_a_resume():
    def train(trial_id, device):
        shown.propose(trial_id)
        shown.tell(EpochFinished, trial_id, **{**dict(make_metrics(1, 0.5)), "device": device})

    t4, a100 = "Tesla T4, float32", "NVIDIA A100-SXM4-40GB, bfloat16"
    shown = Shown({AT: None}, started=False)
    train("a", t4)
    shown.display.start(shown.goal, two_slots())
    train("b", t4)
    assert shown.said == []
    for trial_id, device in (("c", a100), ("d", t4), ("e", a100)):
        train(trial_id, device)
    start = f"trials trained on {t4} before, and train on {a100} now: their results may differ"
    [(kind, text)] = shown.said
    assert kind is WARNING and text.startswith(start) and "fewer epochs" not in text
    shown.policy.sweep.balance_by = "seconds"
    train("f", "NVIDIA H100, bfloat16")
    text = shown.said[-1][1]
    assert text.endswith("balance_by is seconds, so cells on slower devices get fewer epochs")


def test_a_gpu_that_two_trials_lost_is_named_once():
    shown = Shown({AT: None})

    def lose(trial_id, gpu):
        shown.propose(trial_id)
        reason = f"its process lost the GPU {gpu}: AcceleratorError: CUDA error: ECC"
        shown.tell(TrialRestarted, trial_id, cause="process_died", reason=reason)

    def named():
        return [text for _, text in shown.said if "may be faulty" in text]

    t4, other = "Tesla T4 (GPU-5f2c)", "Tesla T4 (GPU-77aa)"
    lose("a", t4)
    lose("a", t4)  # the trial may be the cause
    lose("b", other)
    assert named() == []
    shown.propose("c")
    shown.end("c", "crashed", reason=f"its process lost the GPU {t4}: AcceleratorError, 4 times")
    lose("d", t4)
    [text] = named()
    assert text.startswith(f"a and c lost the GPU {t4}: if trials on other GPUs")


def test_what_a_cell_has_not_learned_is_said_once():
    shown = Shown({AT: 9, KD: 9})
    shown.trial("a", accuracy=0.5)
    assert warnings(shown) == []  # a single trial may have had bad luck
    shown.trial("b", accuracy=0.45)
    assert warnings(shown) == ["AT on A"]
    assert "beats guessing (50.0 % against 50.0 %)" in shown.said[-1][1]
    shown.trial("c", accuracy=0.4)
    assert len(warnings(shown)) == 1
    shown.trial("d", cell=KD, accuracy=0.5)
    shown.trial("e", cell=("kd", "C"), accuracy=0.9)
    assert len(warnings(shown)) == 1
    shown.tell(Completed)  # now a single trial is all there is
    assert warnings(shown) == ["AT on A", "KD on B"]


def test_what_was_said_before_a_resume_is_not_said_again():
    shown = Shown({AT: 9}, started=False)
    for trial_id in "ab":
        shown.trial(trial_id, accuracy=0.5)
    shown.display.start(shown.goal, two_slots())
    shown.trial("c", accuracy=0.45)
    assert warnings(shown) == []


def test_the_runs_of_a_confirmation_are_not_judged():
    shown = Shown({AT: 6}, "runs", ConfirmStarted)
    for seed in (1, 2, 3):
        shown.trial(f"at-A-007-seed{seed}", candidate="at-A-007", accuracy=0.5)
    assert warnings(shown) == []


def test_the_drawing_of_a_search():
    shown = Shown({AT: 2, KD: 2})
    shown.trial("at-0", 10, accuracy=0.9, params={"lr": 0.01234, "alpha": 1})
    shown.trial("at-1", 10, state="stopped", accuracy=0.8)
    shown.propose("kd-0", KD)
    assert shown.frame() == [
        "cell ended best % running finished stopped failed settings",
        "at-A   2/2  90.00       0        1       1      0 lr=0.0123 alpha=1",
        "kd-B   0/2              1        0       0      0",
        "6 epochs/min over the last 20 s; 2/2 slots in use",
        "20 s spent; about 10 s left, from 2 ended trials",
        "[1/4] at-0 finished 90.00 % (cell's best 90.00 %): why",
        "[2/4] at-1 stopped 80.00 % (cell's best 90.00 %): why",
    ]
    assert shown.display.summary() == (
        "2/4 trials have ended, 1 running; 6 epochs/min over the last 20 s; 2/2 slots in "
        "use; 20 s spent; about 10 s left, from 2 ended trials"
    )
    shown.policy.interrupts.stop_requested = True
    assert shown.frame()[-3] == "20 s spent; it stops after the running epochs"


def test_the_drawing_of_a_confirmation():
    shown = Shown({AT: 6}, "runs", ConfirmStarted)
    assert shown.frame()[-2:] == [
        "no epoch yet; 2/2 slots in use",
        "0 s spent; time left unknown until a run has ended",
    ]
    shown.trial("at-A-007-seed1", 3600, candidate="at-A-007", accuracy=0.9)
    shown.trial("at-A-007-seed2", 3600, candidate="at-A-007", accuracy=0.8)
    assert shown.frame()[:4] == [
        "cell ended mean % running finished failed of",
        "at-A   2/6  85.00       0        2      0 at-A-007, 2 runs",
        "1 epochs/h over the last 2 h; 2/2 slots in use",
        "2 h spent; about 2 h left, from 2 ended runs",
    ]
    assert shown.said[-1][1].startswith("[2/6] at-A-007-seed2 finished 80.00 % (cell's best mean")


def test_a_slot_is_in_use_while_its_trial_has_a_process(tmp_path):
    machinery = SweepHarness(tmp_path / "log.jsonl")
    machinery.suggest()
    trial = machinery.suggest()
    assert len(machinery.active_trials.running) == 2
    machinery.scheduler.on_trial_error(None, trial)
    assert len(machinery.active_trials.running) == 1
    assert machinery.suggest().config["trial_id"] == trial.config["trial_id"]
    assert len(machinery.active_trials.running) == 2


def test_at_the_end_no_time_is_left_and_no_line_is_due():
    shown = Shown({AT: 1})
    shown.trial("at-0", 10)
    assert shown.frame()[-2] == "10 s spent"
    assert shown.display.summary() is None


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 3), (200, 24)])
def test_forty_cells_fit_and_running_ones_are_shown(width, height):
    cells = [("at", f"{number:02d}-MultiBranch") for number in range(40)]
    shown = Shown(dict.fromkeys(cells, 20))
    for number in (3, 30):
        shown.trial(f"done-{number}", cell=cells[number], params={"lr": 0.1, "long": "x" * 99})
    shown.now += 1
    shown.propose("open", cells[17])
    lines = shown.frame(width, height)
    assert len(lines) <= max(height - 2, 7) and max(map(len, lines)) <= width
    assert any(line.startswith("at-17-") for line in lines)
    count = sum(line.startswith("at-") for line in lines)
    assert lines[count + 1].startswith(f"… and {40 - count} more cells"[: width - 2])
    if width >= 80:
        row = next(line for line in lines if line.startswith("at-30-"))
        assert " 50.00 " in row and " lr=0.1 l" in row
        assert row.endswith("x" * 99 if width > 150 else "…")


def test_control_characters_are_escaped():
    shown = Shown({AT: 1})
    shown.trial("at-0", params={"form": "\x1b[31m[red]"}, reason="one\nline")
    drawn = "\n".join(shown.frame(120))
    assert r"form=\x1b[31m[red]" in drawn and r": one\nline" in drawn
