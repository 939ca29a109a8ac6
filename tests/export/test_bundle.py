"""Export of a sweep: the files of each trial, the text of a card, and use without kdtune."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from event_logs import OPENING_FIELDS, add_times, make_metrics, write_events
from PIL import Image
from small_runs import IMAGE_SIZE, small_config

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.folders import find_images
from kdtune.errors import RunError, UserError
from kdtune.export.bundle import export_sweep
from kdtune.export.evaluation import predict_images
from kdtune.export.formats import FORMATS, ExportFormat
from kdtune.export.selected_runs import select_best_runs, write_best_configs
from kdtune.log import events
from kdtune.log.folder import SweepFolder
from kdtune.models import build_model
from kdtune.models.checkpoints import load_model, save_model
from kdtune.reports.tables.all_tables import load_sweep_tables
from kdtune.runtime.environment import describe_environment
from kdtune.storage.files import read_yaml, write_yaml
from kdtune.training.rerun import train_from_file
from kdtune.training.run import run_training

STEM = "student-MultiBranchNet"
METRIC = "balanced_accuracy"
CHEAP = ("pth", "safetensors")
CELL = {"method": "student", "model": "MultiBranchNet"}


class Made:
    """A sweep's folder after a search of two trials, of which one was really trained."""

    def __init__(self, path, data, config, network, accuracy, classes=None):
        self.folder, self.config, self.accuracy = SweepFolder(path), dict(config), accuracy
        images = find_images(data)
        self.data = events.DataSummary(**images.summary())
        self.classes = list(classes or images.classes)
        self.network, self.settings = network, SweepConfig.parse(
            {"name": "x", "data": data, "methods": ["student"], "models": ["MultiBranchNet"],
             "baselines": False, "image_size": IMAGE_SIZE, "trials": 2, "epochs": config["epochs"]}
        ).model_dump(mode="json")  # fmt: skip
        log = [events.SweepStarted(spaces={}, **self._opening_fields())]
        for number, score in enumerate((accuracy, accuracy / 2)):
            log += self._trial(f"{STEM}-{number:03d}", score, number=number, origin="start")
        path.mkdir(parents=True)
        write_events(self.folder.log_path, add_times([*log, events.Completed()]))
        self.keep(self.folder.best_path(*CELL.values(), ".pth"), f"{STEM}-000", accuracy)

    def _opening_fields(self):
        environment = describe_environment()
        fields = {"config": self.settings, "data": self.data, "environment": environment}
        return {**OPENING_FIELDS, **fields}

    def keep(self, path, trial, accuracy):
        about = {"epoch": 1, "validation_accuracy": accuracy, "trial_id": trial}
        save_model(path, self.network, config=self.config, classes=self.classes, **about)

    def _trial(self, name, score, **proposal):
        identity = {"trial_id": name, **CELL}
        proposal |= {"params": {}, "distributions": {}, "config": self.config}
        end = {"reason": "", "epochs": 1, "best_validation_accuracy": score}
        return [
            events.TrialProposed(**identity, **proposal),
            events.EpochFinished(**identity, **dict(make_metrics(1, score))),
            events.TrialEnded(**identity, state="finished", **end),
        ]

    def confirm(self, accuracies):
        """Confirm the first trial with runs of these test accuracies; the second is the best."""
        self.data = self.data.model_copy(update={"test_images": 100})
        self.folder.confirm_folder.mkdir()
        np.savez(self.folder.test_labels_path, labels=np.zeros(100, int))
        trial = f"{STEM}-000"
        runs = {f"{trial}-seed{seed}": x for seed, x in enumerate(accuracies, start=1)}
        log = [events.ConfirmStarted(candidates=(), seeds=3, top=1, **self._opening_fields())]
        for seed, run in enumerate(runs, start=1):
            score = self.accuracy if seed == 2 else self.accuracy / 2
            log += self._trial(run, score, number=seed, origin="confirm", candidate=trial)
        log.append(events.CandidateChosen(**CELL, candidate=trial))
        for run, accuracy in runs.items():
            right = np.arange(100) < 100 * accuracy
            np.savez(self.folder.predictions_path(run), predicted=(~right).astype(int))
            tested = {"test_accuracy": accuracy, "test_images": 100}
            log.append(events.RunTested(trial_id=run, **CELL, **tested))
        write_events(self.folder.confirm_log_path, add_times(log))
        self.keep(self.folder.network_path(f"{trial}-seed2"), f"{trial}-seed2", self.accuracy)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Settings of a run, its network, its validation accuracy."""
    place = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    config = small_config(
        folder, method="student", epochs=1, lr=0.05, save_dir=str(place), log_dir=str(place)
    )
    result = run_training(config)
    settings = TrainConfig.parse({**config.model_dump(), "precision": "auto"}).model_dump()
    return settings, result["model"], result["best_accuracy"]


@pytest.fixture
def sweep(trained, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Made(tmp_path / "results" / "x", str(folder), *trained)


def names_in(path):
    return sorted(p.name for p in path.iterdir())


def test_an_unconfirmed_search_is_exported_as_a_search(sweep, tmp_path):
    out = tmp_path / "out"
    lines = export_sweep(sweep.folder.path, out, CHEAP, top=2)
    assert names_in(out) == sorted(
        [f"{STEM}-2.yaml", *(f"{STEM}.{end}" for end in ("yaml", "json", "md", *CHEAP))]
    )
    assert re.fullmatch(rf"{STEM}: trial of the search {STEM}-000, .*: pth, safetensors", lines[0])
    assert lines[1].endswith("settings only, since the sweep keeps no weights of it")
    card = (out / f"{STEM}.md").read_text()
    assert "never judged by test images" in card and "test accuracy" not in card
    assert "64 validation images of the sweep" not in card  # there are fewer
    assert f"{sweep.data.validation_images} validation images of the sweep" in card
    about = json.loads((out / f"{STEM}.json").read_text())
    assert about["classes"] == sweep.classes and about["image_size"] == IMAGE_SIZE
    for name in CHEAP:
        loaded = load_model(out / f"{STEM}.{name}")
        assert "training" not in loaded
        assert loaded["validation_accuracy"] == sweep.accuracy


def test_a_balanced_accuracy_is_named_and_has_no_interval_of_an_accuracy(sweep, tmp_path):
    log = sweep.folder.load_events()
    log[0] = log[0].model_copy(update={"config": {**sweep.settings, "metric": METRIC}})
    sweep.config["metric"] = METRIC
    log[1] = log[1].model_copy(update={"config": sweep.config})
    write_events(sweep.folder.log_path, log)
    out = tmp_path / "out"
    export_sweep(sweep.folder.path, out, CHEAP)
    assert "| validation balanced accuracy of this network |" in (out / f"{STEM}.md").read_text()
    provenance = read_yaml(out / f"{STEM}.yaml")["provenance"]
    assert "validation_interval" not in provenance
    assert provenance["validation_images"] == sweep.data.validation_images


def test_the_exported_settings_give_the_recorded_accuracy_again(sweep, tmp_path):
    export_sweep(sweep.folder.path, tmp_path / "out", CHEAP)
    file = tmp_path / "out" / f"{STEM}.yaml"
    content = read_yaml(file)
    provenance = content.pop("provenance")
    TrainConfig.parse(content)
    assert set(TrainConfig.model_fields) == set(content)
    assert provenance["trial_id"] == f"{STEM}-000" and "run_id" not in provenance
    low, high = provenance["validation_interval"]
    assert 0 <= low < sweep.accuracy < high <= 1
    assert provenance["data_fingerprint"] == sweep.data.fingerprint
    assert provenance["environment"]["torch"] == torch.__version__.split("+")[0]
    # Where things are does not make it another run.
    write_yaml(file, {**content, "num_workers": 1, "save_dir": "a", "provenance": provenance})
    result = train_from_file(file)
    assert result["recorded_accuracy"] == result["best_accuracy"] == sweep.accuracy
    assert result["causes"] == []
    write_best_configs(sweep.folder, select_best_runs(load_sweep_tables(sweep.folder)))
    assert read_yaml(sweep.folder.best_path(*CELL.values())) == {
        **content,
        "provenance": provenance,
    }


def test_of_a_confirmed_sweep_the_best_run_of_the_chosen_candidate_is_exported(sweep, tmp_path):
    sweep.confirm([0.7, 0.8, 0.9])
    out = tmp_path / "out"
    [line] = export_sweep(sweep.folder.path, out, CHEAP)
    assert f"confirmed run {STEM}-000-seed2" in line and "test 80.00 %" in line
    provenance = read_yaml(out / f"{STEM}.yaml")["provenance"]
    assert provenance["run_id"] == f"{STEM}-000-seed2"
    assert provenance["test_accuracy"] == 0.8
    assert provenance["test_interval"] == pytest.approx([0.7111, 0.8666], abs=1e-3)  # Wilson's
    assert provenance["seed_summary"]["test_accuracy_percent"] == pytest.approx(80)
    card = (out / f"{STEM}.md").read_text()
    assert "| test accuracy of this network | 80.00 | 71.12 to 86.66 | 100 images" in card
    assert re.search(r"test accuracy of its settings \| 80\.00 \| ± \d+\.\d+ \| mean over 3", card)


def test_a_card_shows_hostile_names_as_they_are(trained, folder, tmp_path):
    names = [f"<script>{i}|`#[x](y)\n" for i in range(10)]
    made = Made(tmp_path / "x", str(folder), *trained, classes=names)
    export_sweep(made.folder.path, tmp_path / "out", ["pth"])
    card = (tmp_path / "out" / f"{STEM}.md").read_text()
    assert r"\<script\>0\|\`\#\[x\](y)\\n" in card
    assert "<script" not in card.replace(r"\<", "")
    assert json.loads((tmp_path / "out" / f"{STEM}.json").read_text())["classes"] == names


def test_without_the_data_networks_are_compared_on_noise(sweep, tmp_path):
    log = sweep.folder.log_path
    log.write_text(log.read_text().replace(sweep.data.fingerprint, "0" * 64))
    export_sweep(sweep.folder.path, tmp_path / "out", ["pth"])
    card = (tmp_path / "out" / f"{STEM}.md").read_text()
    assert "64 images of random noise, since the sweep's data are not at hand" in card


def test_a_file_with_other_logits_is_not_written(sweep, tmp_path, monkeypatch):
    def write(path, loaded):
        other = build_model("MultiBranchNet", 10, IMAGE_SIZE)
        FORMATS["pth"].write(path, {**loaded, "model": other})

    monkeypatch.setitem(FORMATS, "safetensors", ExportFormat(write, FORMATS["safetensors"].read))
    with pytest.raises(RunError, match=rf"{STEM}\.safetensors is not written: its logits differ"):
        export_sweep(sweep.folder.path, tmp_path / "out", CHEAP)
    assert names_in(tmp_path / "out") == sorted(
        f"{STEM}.{e}" for e in ("json", "md", "pth", "yaml")
    )
    assert ".safetensors" not in (tmp_path / "out" / f"{STEM}.md").read_text()


def test_a_network_of_another_trial_is_not_exported(sweep, tmp_path):
    sweep.keep(sweep.folder.best_path(*CELL.values(), ".pth"), f"{STEM}-001", 0.5)
    [line] = export_sweep(sweep.folder.path, tmp_path / "out", CHEAP)
    assert line.endswith("the sweep keeps no weights of it")
    assert names_in(tmp_path / "out") == [f"{STEM}.yaml"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"formats": ["pth", "tflite"]},
            "no format 'tflite'; there are pth, safetensors, pt2, on",
        ),
        ({"method": "studnet"}, "has no trial of 'studnet'; did you mean 'student'?"),
        ({"model": "ResNet18"}, "has no trial of 'ResNet18'; known are MultiBranchNet"),
        ({"out": Path("results")}, "results is not an empty folder; remove it, or give another"),
    ],
)
def test_an_impossible_export_is_an_error_in_one_sentence(sweep, given, sentence):
    with pytest.raises(UserError, match=sentence):
        export_sweep(sweep.folder.path, **{"out": Path("new"), "formats": ["pth"], **given})
    assert not Path("new").exists()


def write_odd_images(folder):
    """Write noise that is turned by EXIF, half transparent, and grey of 16 bits."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (8, 12, 4)).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colours[..., :3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(colours).save(folder / "transparent.png")
    grey = random.integers(0, 2**16, (8, 12)).astype(np.uint16)
    Image.fromarray(grey).save(folder / "16-bit.png")
    return [str(folder / name) for name in ("turned.jpg", "transparent.png", "16-bit.png")]


ALONE = """
import runpy, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("form", "without"), [("pt2", "numpy"), ("onnx", "torch,onnx")])
def test_an_exported_network_runs_without_kdtune(sweep, tmp_path, form, without):
    export_sweep(sweep.folder.path, tmp_path / "out", [form])
    images = [str(path) for path in find_images(sweep.settings["data"]).validation.images[::3]]
    images += write_odd_images(tmp_path)
    words = [str(tmp_path / "out" / f"{STEM}.{form}.py"), *images]
    found = subprocess.run(
        [sys.executable, "-c", ALONE, f"kdtune,torchvision,{without}", *words],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    network = tmp_path / "out" / f"{STEM}.{form}"
    expected = predict_images(network, list(map(Path, images)), top=1, trust=True)
    assert len(found) == len(images) == 13
    for line, row in zip(found, expected.itertuples(), strict=True):
        name, share = re.fullmatch(r".*: (digit-\d) \((.*) %\)", line).groups()
        assert name == row._2 and float(share) == pytest.approx(100 * row.probability, abs=0.06)
