"""The command line: help at once, mistakes in one sentence with exit code 2."""

import os
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner
from command_line import command_process
from event_logs import make_space, sweep_opening, trial_events, write_log
from report_sweeps import PROFILE, one_method
from small_runs import write_digits
from sweep_folders import write_sweep_folder

from kdtune.cli.commands import cli
from kdtune.config.sweep import SweepConfig
from kdtune.data.decoded import DecodedDataset
from kdtune.data.folders import find_images
from kdtune.errors import UserError
from kdtune.log.folder import SweepFolder
from kdtune.storage.array_cache import ArrayCache


@pytest.mark.parametrize("command", [(), *((name,) for name in cli.commands)])
def test_help(command):
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output


@pytest.fixture(scope="module")
def run():
    with command_process() as run:
        yield run


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("--help", 0, ""),
        ("sweep --name x --data nowhere", 2, "There is no folder nowhere"),
        ("sweep --name x --data digits --teacher no.pth", 2, "There is no file no.pth"),
        ("sweep --name x --data digits --methods att", 2, "There is no method 'att'"),
        ("sweep --name x --data digits --models ResNet81", 2, "There is no model 'ResNet81'"),
        ("sweep --name x --data digits --setting lrr=1", 2, "There is no setting 'lrr'"),
        ("sweep --name x --data digits --setting lr=-1", 2, "The setting lr cannot be -1"),
        ("sweep --name taken --data digits", 2, "results/taken already exists"),
        ("teacher --data nowhere --out t.pth", 2, "There is no folder nowhere"),
        ("data nowhere", 2, "There is no folder nowhere"),
        ("data x-{0..3}.tar", 2, "There is no folder x-{0..3}.tar"),
        ("teacher --data digits --background nocolour --out t.pth", 2, "background cannot be"),
        ("resume nowhere", 2, "There is no folder nowhere"),
        ("train no.yaml", 2, "File 'no.yaml' does not exist"),
        ("sweep --name x --data digits --lr 0.1", 2, "did you mean '--setting lr=0.1'?"),
        ("sweep --name x --data digits --learning-rate=0.1", 2, "'--setting lr=0.1'?"),
        ("teacher --data digits --out t.pth --momentum 0", 2, "'--setting momentum=0'?"),
        ("sweep --name x --data digits --temperature", 2, "'--setting temperature=VALUE'?"),
        ("sweep --name x --data digits --nonsense 1", 2, "No such option"),
        ("resume x --epochs 9", 2, "No such option '--epochs': it stays as it was when the sweep"),
        ("confirm x --epochs 9", 2, "a new sweep can learn from this one with --warm-start"),
        ("confirm x --trials 9", 2, "No such option '--trials': give it to 'kdtune resume'."),
        ("resume x --nonsense", 2, "No such option"),
        ("sweep --name x --data digits --setting learning_rate=1", 2, "did you mean 'lr'?"),
        ("sweep --name x --data digits --methods attention", 2, "did you mean 'at'?"),
        ("sweep --name x --data digits --methods at,,kd", 2, "a name is empty"),
        ("sweep --name x --data digits --models resnet18", 2, "did you mean 'ResNet18'?"),
        ("sweep --name x --data digits --models vit_b_16", 2, "mean 'torchvision:vit_b_16'?"),
        ("sweep --name x --data digits --space x.py", 2, "There is no search space x.py"),
        ("sweep --name x --data digits --space at.lr=1:0", 2, "1 is not below 0"),
        ("sweep --name x --data digits --space att.lr=0:1", 2, "did you mean 'at'?"),
        ("sweep --name x --data digits --space at.lrr=0:1", 2, "did you mean 'lr'?"),
        ("sweep --name x --data digits --start at.lr=", 2, "is not a point: write it as METHOD."),
        ("teacher --data digits --out results", 2, "results already exists"),
        ("sweep --name x --data digits --sampler tpee", 2, "did you mean 'tpe'?"),
        ("status nowhere", 2, "Directory 'nowhere' does not exist"),
        ("sweep taken.d", 2, "There is no file 'taken.d'; names of a list need commas"),
        ("sweep results", 2, "'results' is a folder; images are given by --data results"),
        ("rm nothing", 2, "There is no folder nothing"),
        ("rm taken --yes", 2, "results/taken is not the folder of a sweep"),
    ],
)
def test_mistakes_are_found_before_torch_and_ray_are_loaded(run, tmp_path, words, code, sentence):
    (tmp_path / "results" / "taken").mkdir(parents=True)
    ended, _, message, modules = run(tmp_path, words)
    assert (ended, modules) == (code, [])
    assert sentence in message and len(message.splitlines()) == (code > 0)


def test_reports_need_neither_torch_nor_ray_nor_a_display():
    code = (
        "import sys, kdtune, kdtune.log.folder; from kdtune import load_sweep;"
        "print({'torch', 'ray', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_the_cache_is_listed_and_pruned(kdtune, tmp_path, monkeypatch):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path / "cache"))
    assert kdtune("cache")[1].endswith(f"0.0 MB  in 0 arrays in {tmp_path}/cache\n")
    views = DecodedDataset(find_images("digits"), 8, ArrayCache(tmp_path / "cache"), 1)
    views.pixels("validation")
    _, out, _ = kdtune("cache")
    assert "269 validation images of digits at 8 px" in out and "in 1 arrays" in out
    assert "in 1 arrays" in kdtune("cache", "--prune", "1")[1]
    for words in (("--prune", "nan"), ("--prune", "-1"), ("--prune", "many")):
        assert kdtune("cache", *words)[0] == 2
    assert "in 1 arrays" in kdtune("cache")[1]
    _, out, err = kdtune("cache", "--prune", "0")
    assert "in 0 arrays" in out and "removed 0.1 MB: 269 validation images of digits" in err


def test_a_file_is_no_cache(kdtune, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path / "file"))
    code, out, err = kdtune("cache")
    assert code == 2 and not out and "file is not a folder; see KDTUNE_CACHE" in err


def test_flags_of_cache_limits_and_layers(kdtune, monkeypatch):
    given = []

    def run_sweep(settings, show, plan):
        given.append(SweepConfig.parse(settings))
        raise UserError("enough")

    monkeypatch.setattr("kdtune.tuning.sweep.run_sweep", run_sweep)
    limits = "--max-parameters 1.5M --max-latency 20 --teacher-layers a,b.c --cache-gb 3"
    for words in ("", "--no-cache", limits):
        assert kdtune("sweep", "--name", "x", "--data", "digits", *words.split())[0] == 2
    keys = "max_parameters", "max_latency_ms", "teacher_layers", "cache_gb"
    values = [[getattr(config, key) for key in keys] for config in given]
    default = SweepConfig.model_fields["cache_gb"].default
    assert values == [[None] * 3 + [default], [None] * 3 + [0], [1_500_000, 20, "a,b.c", 3]]


@pytest.mark.parametrize(
    ("words", "show"), [((), "live"), (("--quiet",), "quiet"), (("--verbose",), "verbose")]
)
def test_what_is_shown_is_no_setting_of_the_sweep(kdtune, monkeypatch, words, show):
    given = []

    def run(*arguments):
        given.append(arguments)
        raise UserError("enough")

    monkeypatch.setattr("kdtune.tuning.sweep.run_sweep", run)
    monkeypatch.setattr("kdtune.tuning.sweep.resume_sweep", run)
    monkeypatch.setattr("kdtune.tuning.confirm.confirm_sweep", run)
    monkeypatch.setattr(SweepFolder, "require_log", lambda folder: None)
    sweep_flags = ("--name", "x", "--data", "digits")
    for command in (("sweep", *sweep_flags), ("resume", "x"), ("confirm", "x")):
        assert kdtune(*command, *words)[0] == 2
    (sweep, *shown), *others = given
    assert sweep == {"name": "x", "data": "digits", "settings": {}} and shown == [show, False]
    assert [arguments[1:] for arguments in others] == [({}, show)] * 2


@pytest.mark.parametrize("command", ["resume", "confirm"])
def test_what_else_gets_figures_stays_unless_it_is_given(kdtune, monkeypatch, command):
    given = []

    def run(folder, settings, show):
        given.append(settings)
        raise UserError("enough")

    monkeypatch.setattr(SweepFolder, "require_log", lambda folder: None)
    home = "sweep" if command == "resume" else "confirm"
    monkeypatch.setattr(f"kdtune.tuning.{home}.{command}_sweep", run)
    for words in ((), ("--tracker", "mlflow", "--tracker", "wandb")):
        assert kdtune(command, "results/x", *words)[0] == 2
    assert given == [{}, {"trackers": ("mlflow", "wandb")}]


SWEEP = ("sweep", "--name", "x", "--methods", "student", "--no-baselines")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("sweep", "--data", "digits"), "The setting 'name' is missing"),
        (("sweep", "--name", "x", "--data", "digits"), "The method 'at' learns from a teacher"),
        ((*SWEEP, "--data", "digits", "--setting", "lr"), "'lr' is not KEY=VALUE"),
        ((*SWEEP, "--data", "digits", "--setting", "lr=[1"), "'[1' is not a value"),
        (
            (*SWEEP, "--data", "digits", "--setting", "device=toaster"),
            "device 'toaster' cannot be",
        ),
        (
            (*SWEEP, "--data", "digits", "--epochs", "2", "--setting", "hint_epochs=2"),
            "hint_epochs",
        ),
        (
            ("teacher", "--data", "digits", "--out", "t", "--setting", "epochs=3"),
            "a flag of its own",
        ),
        ((*SWEEP, "--data", "digits", "--models", ","), "The setting models cannot be"),
        ((*SWEEP, "--data", "digits", "--trials", "0"), "The setting trials cannot be 0"),
        (
            (*SWEEP, "--data", "digits", "--scheduler", "x"),
            "'x' is not one of 'asha', 'hyperband'",
        ),
        ((*SWEEP, "--data", "digits", "--time-budget", "soon"), "write it as 2h, 1h30m"),
        (
            (*SWEEP, "--data", "digits", "--balance-by", "epochs"),
            "epochs needs total_epochs or time_",
        ),
        ((*SWEEP, "--data", "digits", "--warm-start", "x"), "There is no folder x"),
        (
            (*SWEEP, "--data", "digits", "--models", "ResNet18,ResNet50", "--total-epochs", 1),
            "total_epochs (1) must be at least one for each of the 2 cells",
        ),
        (
            (*SWEEP, "--data", "digits", "--max-parameters", "many"),
            "max_parameters cannot be 'many': write it as 1500000, 1.5M or 200k",
        ),
        ((*SWEEP, "--data", "digits", "--max-latency", "0"), "max_latency_ms cannot be 0"),
        (
            (*SWEEP, "--data", "digits", "--max-parameters", "1k"),
            "No student has at most 1,000 parameters; the least is 2",
        ),
        ((*SWEEP, "--data", "digits", "--teacher", "ResNet18=no.pth"), "There is no file no.pth"),
        (
            (*SWEEP, "--data", "digits", "--teacher", f"ResNet81={__file__}"),
            "There is no model 'ResNet81'; did you mean 'ResNet18'?",
        ),
        (("sweep", "no.yaml"), "There is no file 'no.yaml'"),
        (
            ("leaderboard", ".", "--max-parameters", "many"),
            "'many' is not a number: write it as 1500000, 1.5M or 200k.",
        ),
        (("report", ".", "--max-latency", "0"), "0 is not in the range x>0"),
        (("export", "nowhere", "--out", "x"), "Directory 'nowhere' does not exist"),
        (("export", ".", "--out", "x", "--top", "0"), "0 is not in the range x>=1"),
        (
            ("evaluate", __file__, "--data", "digits"),
            "has an unknown format; known are .pth, .saf",
        ),
        (("evaluate", "no.onnx", "--data", "digits"), "File 'no.onnx' does not exist"),
        (
            ("evaluate", __file__, "--data", "digits", "--figure", "c.pdf"),
            "'c.pdf' must end with .png or .svg.",
        ),
        (("data", "digits", "--sheet", "s.gif"), "'s.gif' must end with .png."),
        (("predict", "no.pth", "a.png"), "File 'no.pth' does not exist"),
        (
            ("teacher", "--data", "digits", "--out", "t.pth", "--model", "X"),
            "There is no model 'X'",
        ),
        (("sweeep",), "No such command 'sweeep'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(kdtune, tmp_path, words, sentence):
    code, out, err = kdtune(*words)
    assert code == 2 and not out
    assert sentence in err and err.count("\n") == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_sweep_is_not_that_of_a_run(kdtune, tmp_path):
    (tmp_path / "sweep.yaml").write_text("{name: x, data: digits, methods: [at]}")
    code, _, err = kdtune("train", "sweep.yaml")
    assert (code, err) == (
        2, "kdtune: sweep.yaml has the settings of a sweep: kdtune sweep sweep.yaml\n"
    )  # fmt: skip


def test_debug_shows_where_a_mistake_was_found(kdtune):
    with pytest.raises(UserError, match="There is no folder"):
        kdtune("--debug", "resume", "nowhere")


def test_flags_win_over_the_file(kdtune, tmp_path):
    sweep = {"name": "x", "data": "nowhere", "methods": ["student"], "baselines": False}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert (
        "There is no folder elsewhere" in kdtune("sweep", "sweep.yaml", "--data", "elsewhere")[2]
    )
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "trails": 2}))
    assert "did you mean 'trials'?" in kdtune("sweep", "sweep.yaml")[2]


def test_a_hint_layer_that_no_network_has_stops_a_sweep(kdtune, tmp_path, folder, teacher_file):
    words = ("sweep", "--name", "x", "--data", folder, "--teacher", teacher_file)
    code, _, err = kdtune(*words, "--methods", "fitnets", "--setting", "hint_layer=7")
    assert code == 2 and "hint_layer 7 does not exist" in err
    assert list(tmp_path.iterdir()) == []


def test_sweeps_of_one_name_in_two_places_are_told_apart(kdtune, tmp_path):
    for place in ("a", "b"):
        write_log(tmp_path / place / "x", [sweep_opening(), *trial_events(0, [0.5])])
    code, out, _ = kdtune("leaderboard", "a/x", "b/x", "--format", "csv")
    assert code == 0
    assert [line.split(",")[0] for line in out.splitlines()] == ["sweep", "a/x", "b/x"]


def test_limits_of_the_student_to_ship(kdtune, tmp_path):
    sweep = one_method()
    sweep.confirm_events.append(PROFILE.model_copy(update={"parameters": 1_200_000}))
    write_sweep_folder(tmp_path / "s", sweep)
    for command in ("leaderboard", "report"):
        limits = ("--max-parameters", "1.5M", "--max-latency", "1.5", "--model", "A")
        code, out, _ = kdtune(command, "s", *limits)
        page = (tmp_path / "s" / "report.html").read_text() if command == "report" else out
        assert code == 0 and "Within the limits ship AT on A: 74.8" in page.replace("\u00a0", " ")
        code, out, err = kdtune(command, "s", "--max-parameters", "1.1M")
        assert code == 2 and not out
        assert "No student has at most 1,100,000 parameters; the least is 1,200,000, of A." in err


def test_settings_that_are_no_mapping_are_refused_with_and_without_a_flag(kdtune, tmp_path):
    sweep = {"name": "x", "data": "digits", "settings": [1]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    for flags in ((), ("--setting", "lr=1")):
        code, _, err = kdtune("sweep", "sweep.yaml", *flags)
        assert code == 2 and "The setting settings cannot be [1]" in err


def test_without_a_command_there_is_help(kdtune):
    code, _, err = kdtune()
    assert code == 2 and "Usage:" in err and "demo" in err


def test_a_demo_that_is_there_is_left_alone(kdtune, tmp_path):
    (tmp_path / "results" / "demo").mkdir(parents=True)
    code, _, err = kdtune("demo")
    assert code == 2 and "results/demo already exists" in err
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["demo"]


def test_a_diverged_run_is_an_error_but_no_mistake(kdtune, tmp_path):
    settings = {"method": "student", "data_dir": "digits", "image_size": 8, "lr": 1e20}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    code, _, err = kdtune("train", "c.yaml")
    assert code == 1 and "the training loss became" in err


def test_spaces_shows_every_range_and_its_source(kdtune):
    code, out, _ = kdtune("spaces")
    assert code == 0
    assert "0.001 to 0.3, log scale" in out and "RepDistiller" in out


def test_spaces_of_a_sweep_say_what_its_strengths_are_as_weights(kdtune, tmp_path):
    distribution = {
        "name": "FloatDistribution",
        "attributes": {"step": None, "low": 0.01, "high": 100.0, "log": True},
    }
    [proposal] = trial_events(0, [])
    proposal = proposal.model_copy(
        update={
            "params": {"beta_strength": 1.0},
            "distributions": {"beta_strength": distribution},
            "loss_scales": {"beta": 0.005},
        }
    )
    opening = sweep_opening()
    spaces = {**opening.spaces, "at": make_space(beta_strength=distribution)}
    opening = opening.model_copy(update={"spaces": spaces})
    write_log(tmp_path / "s", [opening, proposal])
    code, out, _ = kdtune("spaces", "s")
    assert code == 0 and "beta_strength   0.01 to 100, log scale" in out
    assert out.splitlines()[-3].split() == ["at", "A", "beta", "0.005", "200", "2", "2e+04"]
    assert "strength: weight · term / classification loss" in out
    code, _, err = kdtune("spaces", "s", "--space", "x.py")
    assert code == 2 and "leave --space out" in err


def test_bad_images_are_listed_and_the_sweep_does_not_begin(kdtune, tmp_path):
    data = write_digits(tmp_path / "data", 10)
    bad = sorted(data.glob("digit-[012]/*"))
    for path in bad:
        path.write_bytes(b"")
    code, _, err = kdtune(
        "sweep", "--name", "x", "--data", data, "--methods", "student", "--no-baselines",
        "--image-size", "8", "--models", "MultiBranchNet",
    )  # fmt: skip
    assert code == 2 and not (tmp_path / "results").exists()
    decoded = [*find_images(str(data)).train.images, *find_images(str(data)).validation.images]
    listed = {line for line in err.splitlines() if line.endswith(": it is empty")}
    assert listed == {f"{path}: it is empty" for path in bad if path in decoded}
    assert "skip them with --skip-bad-images" in err.splitlines()[-1]


def test_what_is_no_sweep_cannot_be_resumed_or_looked_at(kdtune, tmp_path):
    (tmp_path / "x").mkdir()
    for command in ("resume", "status"):
        code, _, err = kdtune(command, "x")
        assert code == 2 and "is not the folder of a sweep" in err
    (tmp_path / "x" / "log.jsonl").write_text("")
    for command in ("resume", "status"):
        code, _, err = kdtune(command, "x")
        assert code == 2 and "does not begin with the sweep's settings" in err


def test_what_the_system_refuses_is_one_line(kdtune, tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise OSError(5, "Input/output error", str(path))

    (tmp_path / "x.yaml").write_text("epochs: 1")
    monkeypatch.setattr("kdtune.training.rerun.train_from_file", refuse)
    code, _, err = kdtune("train", "x.yaml")
    assert code == 1 and err == "kdtune: [Errno 5] Input/output error: 'x.yaml'\n"


def test_a_teacher_and_a_run_have_the_threads_that_are_given(kdtune, tmp_path, monkeypatch):
    given = []

    def record_run(path, threads, recipe, watch):
        given.append(threads)
        raise KeyboardInterrupt

    def record_teacher(config, out, say, threads, on_step):
        given.append(threads)
        raise KeyboardInterrupt

    (tmp_path / "x.yaml").write_text("epochs: 1")
    monkeypatch.setattr("kdtune.training.rerun.train_from_file", record_run)
    monkeypatch.setattr("kdtune.training.train_teacher.train_teacher", record_teacher)
    for words in ("train x.yaml", "teacher --data digits --out t.pth"):
        kdtune(*words.split())
        kdtune(*words.split(), "--threads", 3)
        assert "--threads" in kdtune(*words.split(), "--threads", 0)[2]
    assert given == [None, 3, None, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP there alone")
@pytest.mark.parametrize(
    ("variables", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_waiting_threads_of_torch_soon_sleep_unless_the_user_says_otherwise(variables, spins):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **variables}
    code = "import kdtune, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    if not variables:
        code += "; import torch"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == f"{spins}\n"
    assert variables or "GOMP_SPINCOUNT = '1000'" in shown.stderr


def test_a_path_that_is_not_utf8_is_a_sentence(kdtune, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_digits(tmp_path / name, 10)
    code, _, err = kdtune("sweep", "--name", "x", "--data", name, "--methods", "student",
                          "--no-baselines")  # fmt: skip
    assert code == 2 and r"caf\xe9 is not plain UTF-8, which Ray cannot handle" in err


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ((), ("pth", "safetensors", "pt2")),
        (("--format", "onnx", "--format", "pth"), ("onnx", "pth")),
        (("--format", "onnx, pth", "--format", "pth"), ("onnx", "pth")),
    ],
)
def test_every_format_counts_that_export_is_given(kdtune, tmp_path, monkeypatch, flags, names):
    asked = {}
    monkeypatch.setattr("kdtune.export.bundle.export_sweep", lambda *_, **a: [asked.update(a)][:0])
    code, _, _ = kdtune("export", tmp_path, "--out", "x", *flags)
    assert code == 0 and asked["formats"] == names
