"""Web pages of sweeps: studies as a browser receives them."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from urllib.request import urlopen
from wsgiref.util import setup_testing_defaults

import pytest
from click.testing import CliRunner
from event_logs import add_times, repeat_events, sweep_opening, trial_events, write_log

from kdtune.cli.commands import cli
from kdtune.errors import UserError
from kdtune.log.events import SweepResumed
from kdtune.trackers.dashboard import Dashboard

EVENTS = [
    sweep_opening(),
    *trial_events(0, [0.5, 0.75, 0.25], "finished"),
    *trial_events(1, [0.375], "stopped", hint_epochs=2),
    *trial_events(2, [0.125], "diverged"),
    *trial_events(3, [], "crashed"),
    *trial_events(4, [0.25]),
]


def ask(dashboard, path, method="GET", host="127.0.0.1:8080"):
    """Return the status and the body of the answer to a request."""
    said = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": host}
    setup_testing_defaults(environ)
    body = dashboard(environ, lambda status, *headers: said.append(status))
    return said[0], b"".join(body)


def study(dashboard, number):
    """Return a study as a browser receives it."""
    status, body = ask(dashboard, f"/api/studies/{number}")
    assert status == "200 OK"
    return json.loads(body)


def test_each_cell_is_a_study_with_every_trial_of_the_log(tmp_path):
    dashboard = Dashboard([write_log(tmp_path / "s", EVENTS).path])
    listed = json.loads(ask(dashboard, "/api/studies")[1])["study_summaries"]
    assert [s["study_name"] for s in listed] == ["s: at-A", "s: student-A"]
    found = study(dashboard, 0)
    trials = found["trials"]
    assert [t["state"] for t in trials] == ["Complete", "Pruned", "Fail", "Fail", "Running"]
    assert [t.get("values") for t in trials] == [[0.75], [0.375], None, None, None]
    assert [value["value"] for value in trials[0]["intermediate_values"]] == [0.5, 0.75, 0.25]
    parameters = {p["name"]: p["param_external_value"] for p in trials[1]["params"]}
    assert parameters == {"lr": "0.2", "hint_epochs": "2"}
    assert {p["distribution"]["type"] for p in trials[1]["params"]} == {
        "FloatDistribution", "CategoricalDistribution",
    }  # fmt: skip
    about = {a["key"]: a["value"] for a in trials[0]["user_attrs"]}
    assert about == {
        "trial_id": "at-A-000", "origin": "start", "state": "finished",
        "reason": "it was finished", "epochs": "3", "device_seconds": "4.5",
    }  # fmt: skip
    times = [trials[0][f"datetime_{end}"] for end in ("start", "complete")]
    assert times == [datetime.fromtimestamp(1.7e9 + 60 * n).isoformat() for n in (1, 5)]
    assert found["best_trials"][0]["number"] == 0
    assert found["objective_names"] == ["best validation accuracy"]
    assert study(dashboard, 1)["trials"] == []


def test_a_repeat_is_an_ordinary_trial_that_names_its_candidate(tmp_path):
    events = [*EVENTS, *repeat_events(5, 0, [0.5], "finished")]
    repeat = study(Dashboard([write_log(tmp_path / "s", events).path]), 0)["trials"][5]
    assert (repeat["state"], repeat["values"]) == ("Complete", [0.5])
    assert [p["param_external_value"] for p in repeat["params"]] == ["0.1"]
    about = {a["key"]: a["value"] for a in repeat["user_attrs"]}
    assert about["trial_id"] == "at-A-005" and about["origin"] == "repeat of at-A-000"


def test_new_events_are_shown_at_the_next_request(tmp_path):
    folder = write_log(tmp_path / "s", EVENTS)
    dashboard = Dashboard([folder.path])
    later = [*trial_events(4, [0.25, 1.0], "finished")][2:]
    lines = [event.model_dump_json() for event in add_times(later, len(EVENTS))]
    with open(folder.log_path, "a") as log:
        log.write(lines[0] + "\n" + lines[1][:20])  # as a driver may be in its middle
    assert study(dashboard, 1)["trials"] == []  # the dashboard itself keeps trials for 2 s
    with open(folder.log_path, "a") as log:
        log.write(lines[1][20:] + "\n")
    last = study(dashboard, 0)["trials"][4]
    assert (last["state"], last["values"]) == ("Complete", [1.0])
    assert [value["step"] for value in last["intermediate_values"]] == [1, 2]


def test_cells_that_a_resume_adds_are_studies_too(tmp_path):
    again = SweepResumed(**sweep_opening(models=["A", "B"]).model_dump(exclude={"kind"}))
    dashboard = Dashboard([write_log(tmp_path / "s", [sweep_opening(), again]).path])
    listed = json.loads(ask(dashboard, "/api/studies")[1])["study_summaries"]
    assert [s["study_name"] for s in listed] == [
        "s: at-A", "s: student-A", "s: at-B", "s: student-B",
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(tmp_path, method):
    dashboard = Dashboard([write_log(tmp_path / "s", EVENTS).path])
    assert ask(dashboard, "/api/studies/0", method)[0] == "405 Method Not Allowed"
    assert len(study(dashboard, 0)["trials"]) == 5


def test_a_damaged_log_is_reported_once_and_its_pages_stay(tmp_path, capsys):
    folder = write_log(tmp_path / "s", EVENTS)
    dashboard = Dashboard([folder.path])
    with open(folder.log_path, "a") as log:
        unknown = [*trial_events(9, [0.5])][1:]
        log.writelines(event.model_dump_json() + "\n" for event in add_times(unknown))
    for _ in range(2):
        assert len(study(dashboard, 0)["trials"]) == 5
    assert capsys.readouterr().err.count("at-A-009, which was not proposed. Nothing more") == 1


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([], "it does not begin with the settings"),
        ([sweep_opening(), *[*trial_events(0, [0.5])][1:]], "of at-A-000, which was not"),
        ([sweep_opening(methods=["kd"]), *trial_events(0, [0.5])], r"KeyError\(\('at', 'A'\)\)"),
    ],
)
def test_a_log_that_is_damaged_at_the_start_is_an_error(tmp_path, events, sentence):
    with pytest.raises(UserError, match=f"log.jsonl.* is damaged: .*{sentence}"):
        Dashboard([write_log(tmp_path / "s", events).path])


def test_wrong_folders_ports_and_missing_packages_are_errors(tmp_path, monkeypatch):
    first, second = (write_log(tmp_path / place / "s", EVENTS).path for place in "ab")
    with pytest.raises(UserError, match="There is no folder"):
        Dashboard([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="Two folders are called s"):
        Dashboard([first, second])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is not available: address already in use; use"):
            Dashboard([first]).serve(taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    run = CliRunner().invoke(cli, ["dashboard", str(first)])
    said = "This needs optuna_dashboard, which is not installed: run "
    assert str(run.exception) == said + "pip install '.[dashboard]' in the folder of kdtune."


def test_the_command_serves_this_machine_until_ctrl_c_and_leaves_nothing(tmp_path, monkeypatch):
    folder = write_log(tmp_path / "s", EVENTS)
    before = sorted(tmp_path.rglob("*"))
    pages = []

    def fetch(server):
        with urlopen(f"http://127.0.0.1:{server.server_port}/dashboard") as page:
            pages.append(page.read())

    def interrupted(server):
        with ThreadPoolExecutor(1) as pool:
            fetched = pool.submit(fetch, server)
            server.handle_request()
            fetched.result()
        raise KeyboardInterrupt

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", interrupted)
    run = CliRunner().invoke(cli, ["dashboard", str(folder.path), "--port", "0"])
    assert run.exit_code == 0 and run.stdout.startswith("http://127.0.0.1:") and not run.stderr
    assert b"<title>Optuna Dashboard</title>" in pages[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_requests_with_a_foreign_host_name_are_refused(tmp_path):
    dashboard = Dashboard([write_log(tmp_path / "s", EVENTS).path])
    assert ask(dashboard, "/api/studies", host="localhost:8080")[0] == "200 OK"
    assert ask(dashboard, "/api/studies", host="evil.example:8080")[0] == "403 Forbidden"
