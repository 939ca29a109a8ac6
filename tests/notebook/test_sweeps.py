"""Sweeps that `load_sweep` opens for a notebook, from folders written by hand."""

import io

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from report_pages import HOSTILE, STATES, Page
from report_sweeps import Sweep, four_cells, half_confirmed, one_method
from sweep_folders import write_sweep_folder

from kdtune import load_sweep
from kdtune.errors import UserError
from kdtune.export.selected_runs import select_best_runs, write_best_configs
from kdtune.log.events import TrialProposed
from kdtune.models import build_model
from kdtune.models.checkpoints import save_model
from kdtune.reports.tables.all_tables import collect_tables, load_sweep_tables
from kdtune.reports.tables.columns import TABLES

NAMES = "ship, verdict, search, settings-at, settings-fitnets, settings-student, failures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sweep_folder(tmp_path_factory.mktemp("sweeps") / "s", four_cells())


@pytest.fixture(scope="module")
def sweep(folder):
    return load_sweep(folder.path)


def test_tables_are_those_of_the_command(folder, sweep):
    known = collect_tables(folder, load_sweep_tables(folder))
    for name, table in known.items():
        pd.testing.assert_frame_equal(sweep.table(name), table)
    for name, own in [
        ("trials", sweep.trials),
        ("epochs", sweep.epochs),
        ("leaderboard", sweep.leaderboard()),
        ("comparison", sweep.comparison()),
    ]:
        pd.testing.assert_frame_equal(own, known[name])
    own["model_a"] = "spoilt"  # the last one: the comparison
    assert "model_a" not in sweep.comparison()
    with pytest.raises(UserError, match="has no table 'models'; there are trials, epochs, "):
        sweep.table("models")


def test_every_table_has_the_columns_of_the_reference(folder):
    for name, table in collect_tables(folder, load_sweep_tables(folder)).items():
        columns = [column for column in TABLES[name].names if not column.startswith(("<", "loss"))]
        further = [column for column in table if column not in columns]
        assert set(columns) <= set(table), name
        assert further == (["lr"] if name == "trials" else []), name


def test_tables_of_several_say_whose_row_it_is(folder, sweep, tmp_path):
    other = write_sweep_folder(tmp_path / "t", one_method())
    sweeps = load_sweep(folder.path, str(other.path))
    for table in (sweeps.trials, sweeps.epochs, sweeps.leaderboard()):
        assert table.columns[0] == "sweep" and table.index.is_unique
        assert table["sweep"].unique().tolist() == [str(folder.path), str(other.path)]
    assert len(sweeps.trials) == len(sweep.trials) + 1
    assert sweeps.plot("1-verdict").axes
    with pytest.raises(UserError, match="No figure: there is only one method"):
        sweeps.plot("2-verdict")
    assert sweeps.best("fitnets", "A")["method"] == "fitnets"
    with pytest.raises(UserError, match="at on A is in .*/s and .*/t; load the one that is"):
        sweeps.best("at", "A")
    first, ship, method, second, other_ship = repr(sweeps).splitlines()
    assert [first, ship, method] == repr(sweep).splitlines()
    assert ship.startswith("Ship AT on A: ") and "on average over 2" in method
    assert second.endswith("/t: 1 trials in 1 cells; complete")
    assert (
        other_ship == "Ship AT on A: 74.8 % (64.5–82.8) on test; no other student is a candidate."
    )


def test_limits_are_those_of_the_command(folder):
    assert load_sweep(folder.path, model="B").table("ship")["in_ship_set"].tolist()[0] == "best"
    assert "Within the limits ship AT on B: " in repr(load_sweep(folder.path, model="B"))
    with pytest.raises(UserError, match="The costs of the students are not measured yet"):
        load_sweep(folder.path, max_parameters=10)


@pytest.mark.parametrize("state", ["only opened", "all failed", "half confirmed", "one method"])
def test_a_sweep_that_runs_is_shown(tmp_path, state):
    folder = write_sweep_folder(tmp_path / "s", STATES[state][0](), complete=False)
    with folder.locked():
        sweep = load_sweep(folder.path)
        assert repr(sweep).startswith(f"{folder.path}: ") and "running" in repr(sweep)
        page = Page(sweep._repr_html_())
    assert "running" in page.said and "<script" not in page.text and "<figure" not in page.text
    assert "nan" not in page.said.lower().split() and "<NA>" not in page.text


def test_a_notebook_shows_both_answers_and_the_leaderboard_in_its_own_colours(sweep):
    page, lead = Page(sweep._repr_html_()), sweep.comparison()["sentence"][2]
    assert lead in page.said and lead in repr(sweep)
    assert page.said.index("Ship AT on A: ") < page.said.index(lead)
    assert page.table("student", "ship")[0]["student"] == "AT on A"
    assert [(r["model"], r["rank"]) for r in page.table("rank", "method")][:2] == [
        ("A", "1"), ("A", "2"),
    ]  # fmt: skip
    style = page.text.split("<style>")[1].split("</style>")[0]
    rules = [rule.split("{")[0] for rule in style.split("}")[:-1]]
    assert all(one.strip().startswith(".kdtune") for rule in rules for one in rule.split(","))
    assert "#" not in style and "rgb" not in style and "background" not in style


def test_hostile_names_are_shown_as_they_are(tmp_path):
    sweep = Sweep().search("at", "A", 0.5)
    for event in sweep.events:
        if isinstance(event, TrialProposed):
            event.params["lr"] = HOSTILE
    loaded = load_sweep(write_sweep_folder(tmp_path / "<b>x", sweep).path)
    text = loaded._repr_html_()
    assert "<script>" not in text and "<b>x" not in text and "\x1b" not in text
    assert "&lt;script&gt;" in text and "&lt;b&gt;x" in text


def test_figures_are_those_of_the_report_and_show_themselves(sweep):
    png, look = sweep.plot("verdict")._repr_png_()
    assert Image.open(io.BytesIO(png)).width == 2 * look["width"]
    assert sweep.plot("search").axes[0].get_title(loc="left") == "A"
    for name, why in [
        ("curves", f"no figure 'curves'; known are {NAMES}."),
        ("ship", "No figure: `kdtune confirm .* measures the costs of the students"),
        ("settings-at", "AT, no figure: a range of good values needs 5 successful trials"),
    ]:
        with pytest.raises(UserError, match=why):
            sweep.plot(name)


@pytest.mark.parametrize(
    ("make", "name", "why"),
    [
        (Sweep, "verdict", "No trial has started yet"),
        (Sweep, "ship", "No student can be shipped: no trial has succeeded yet"),
        (Sweep, "settings", "no trial has started yet"),
        (one_method, "verdict", "there is only one method"),
        (lambda: Sweep().search("at", "A", "crashed"), "search", "no trial has ended with"),
    ],
)  # fmt: skip
def test_a_figure_without_data_says_what_is_missing(tmp_path, make, name, why):
    sweep = load_sweep(write_sweep_folder(tmp_path / "s", make()).path)
    with pytest.raises(UserError, match=why):
        sweep.plot(name)


def test_the_best_settings_are_those_of_the_yaml_file(tmp_path):
    sweep = half_confirmed()
    for event in [*sweep.events, *sweep.confirm_events]:
        if isinstance(event, TrialProposed):
            event.config.update({"teacher_model": "old.pth", "data_dir": "old"})
    folder = write_sweep_folder(tmp_path / "s", sweep)
    best = select_best_runs(load_sweep_tables(folder))
    write_best_configs(folder, best)
    loaded = load_sweep(folder.path)
    assert best["at", "A"].confirmed and not best["kd", "B"].confirmed
    for cell in best:
        written = yaml.safe_load(folder.best_path(*cell).read_text())
        del written["provenance"]
        assert loaded.best(*cell) == written and written["data_dir"] == "d"


def test_cells_that_are_not_there(sweep, tmp_path):
    with pytest.raises(UserError, match="has the method 'fitnet'; did you mean 'fitnets'?"):
        sweep.best("fitnet", "A")
    with pytest.raises(UserError, match="has the model 'ResNet'; known are A, B"):
        sweep.model("at", "ResNet")
    failed = load_sweep(
        write_sweep_folder(tmp_path / "t", Sweep().search("at", "A", "crashed")).path
    )
    with pytest.raises(UserError, match="/t has no successful trial of at on A yet"):
        failed.best("at", "A")
    with pytest.raises(UserError, match="No trial has started yet"):
        load_sweep(write_sweep_folder(tmp_path / "u", Sweep()).path).best("at", "A")
    with pytest.raises(UserError, match="There is no folder"):
        load_sweep(tmp_path / "no")
    with pytest.raises(UserError, match="needs the folder of a sweep"):
        load_sweep()


def save(path, trial):
    network = build_model("MultiBranchNet", 2, 8)
    config = {"model": "MultiBranchNet", "image_size": 8}
    save_model(path, network, config=config, classes=["x", "y"], trial_id=trial)
    return network.state_dict()


def test_the_network_is_that_of_the_best_settings(tmp_path):
    folder = write_sweep_folder(tmp_path / "s", half_confirmed())
    sweep, run = load_sweep(folder.path), "at-A-000-seed1"
    save(folder.best_path("at", "A", ".pth"), "at-A-000")  # the search's, before the confirmation
    with pytest.raises(
        UserError, match=f"no network of {run}, the best of at on A: it is written"
    ):
        sweep.model("at", "A")
    of_run = save(folder.network_path(run), run)
    of_trial = save(folder.best_path("kd", "B", ".pth"), "kd-B-000")
    for cell, weights in ((("at", "A"), of_run), (("kd", "B"), of_trial)):
        network = sweep.model(*cell)
        assert not network.training
        assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    folder.best_path("kd", "B", ".pth").write_bytes(b"broken")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        sweep.model("kd", "B")
