"""What a person sees while a sweep runs, from the events of its log."""

from kdtune.tuning.progress import Progress

PIXELS = {"kind": "pixels", "what": "9 images", "state": "found", "bytes": 10**9, "seconds": 0.1}
TARGETS = {"kind": "targets", "what": "targets", "state": "built", "bytes": 10**9, "seconds": 2.5}


def trial(name, **config):
    config = {"teacher_model": "t.pth", "cache_targets": True, "cache_gb": 20, **config}
    yield {"event": "asked", "trial_id": name, "config": config}
    yield {"event": "epoch", "trial_id": name}


def after(*events):
    progress = Progress()
    progress.begin(9)
    for event in events:
        progress.fold(event)
    return progress


def opened(*prepared):
    return {"event": "sweep", "views": {"prepared": list(prepared)}}


def test_what_was_saved_counts_passes_and_the_epochs_that_learned_from_them():
    view = {**TARGETS, "event": "view", "trial_id": "a", "seconds": 1.5}
    events = [opened(PIXELS, TARGETS), *trial("a"), view, *trial("b"), *trial("live", cache_gb=0)]
    said = "Views: the teacher ran 2 times (4.0 s) for 2 epochs that learned from it; the teacher "
    assert after(*events).saved() == said + "ran live for 1 epochs; 3.0 GB in the cache."


def test_a_teacher_whose_targets_were_there_did_not_run():
    found = {**TARGETS, "state": "found"}
    said = after(opened(PIXELS, found), *trial("a")).saved()
    assert said.startswith("Views: the teacher did not run for 1 epochs that learned from it")


def test_students_without_a_teacher_speak_of_images_alone():
    said = after(opened(PIXELS), *trial("a", teacher_model=None)).saved()
    assert said == "Views: 1.0 GB in the cache."


def test_a_live_teacher_is_told():
    said = after(opened(), *trial("a", cache_gb=0)).saved()
    assert said == "Views: the teacher ran live for 1 epochs."


def test_what_was_there_before_is_counted_and_not_said_again(capsys):
    progress = Progress()
    end = {"event": "ended", "trial_id": "at-A-000", "method": "at", "model": "A"}
    end |= {"state": "finished", "reason": "all", "best_validation_accuracy": 0.9}
    progress.fold(end)
    assert capsys.readouterr().err == ""
    progress.begin(9)
    progress.fold({**end, "best_validation_accuracy": 0.8})
    said = "[2/9] at-A-000 finished 80.00 % (cell's best 90.00 %): all\n"
    assert capsys.readouterr().err == said


def test_nothing_is_said_where_nothing_was_kept():
    assert after(opened()).saved() == ""


def test_a_view_that_a_trial_builds_or_waits_for_is_told(capsys):
    after({**TARGETS, "event": "view", "trial_id": "at-000", "state": "waiting"})
    said = "at-000: waiting for targets, which another process is building\n"
    assert capsys.readouterr().err == said
