"""One run and its files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torchvision
from small_runs import IMAGE_SIZE, small_config, write_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdtune import prepare_dataloaders
from kdtune.at import create_at_config, train_at
from kdtune.config.same_settings import hash_settings
from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batches
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.errors import UserError
from kdtune.fitnets import create_fitnets_config, train_fitnets
from kdtune.models.checkpoints import load_model, read_checkpoint, write_checkpoint
from kdtune.storage.files import write_yaml
from kdtune.training.epoch import evaluate
from kdtune.training.rerun import train_from_file
from kdtune.training.run import check_run, run_training
from kdtune.training.train_teacher import train_teacher


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def foreign_teacher(tmp_path_factory):
    """torchvision's ResNet18 with fresh weights, as torchvision would save it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("foreign") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), path)
    return path


def test_a_run_leaves_its_files(folder, teacher_file, tmp_path, capsys):
    config = small_config(
        folder, teacher_model=str(teacher_file), experiment_name="x", save_freq=2, epochs=3
    )
    result = run_training(config)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {f for f in files if "tfevents" not in f} == {
        "checkpoints/x_best.pth", "checkpoints/x_final.pth", "checkpoints/x_epoch_2.pth",
        "logs/x.log", "logs/x_summary.json",
    }  # fmt: skip
    assert any(f.startswith("logs/x/events.out.tfevents") for f in files)
    summary = json.loads((tmp_path / "logs/x_summary.json").read_text())
    assert summary["best_accuracy"] == result["best_accuracy"]
    assert len(summary["training_history"]) == 3
    assert "epoch 3/3" in capsys.readouterr().err


def test_weights_and_test_figures_are_those_of_the_best_validation_epoch(folder):
    config = small_config(folder, method="student", experiment_name="x", epochs=4, lr=0.2)
    result = run_training(config)
    data = find_images(str(folder))
    batches = Batches(decode_images(data.validation, IMAGE_SIZE), data.validation.labels)
    assert evaluate(result["model"], batches, config)["accuracy"] == result["best_accuracy"]
    batches = Batches(decode_images(data.test, IMAGE_SIZE), data.test.labels)
    assert evaluate(result["model"], batches, config) == result["test_results"]
    assert load_model("checkpoints/x_best.pth")["validation_accuracy"] == result["best_accuracy"]


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def same_tensors(a, b):
    """Return True if two nests of dicts and lists are equal, tensors to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tensors(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_tensors, a, b))
    return a == b


RESUMED = {
    "at": {"method": "at", "alpha": 0.5, "beta": 100.0},
    "fitnets in its hint stage": {"method": "fitnets", "beta": 1.0, "hint_epochs": 3},
    "a strong recipe with mixed views": {
        "method": "at",
        "beta": 100.0,
        "recipe": "strong",
        "mix": "cutmix",
        "augment_views": 3,
        "optimizer": "adamw",
        "gradient_clip_val": 1.0,
        "balanced_sampling": True,
    },
}

KILLED = """
import os, signal, sys, json
import torch
from kdtune.config.train import TrainConfig
from kdtune.training.run import check_run, run_training
from kdtune.training.run_files import RunFiles
torch.set_num_threads(1)
save_epoch = RunFiles.save_epoch
def save_and_die(self, result):
    save_epoch(self, result)
    if result.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
RunFiles.save_epoch = save_and_die
run_training(TrainConfig.parse(json.loads(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_a_killed_run_goes_on_as_if_it_had_not_been(folder, foreign_teacher, case):
    config = small_config(
        folder, teacher_model=str(foreign_teacher), epochs=4, save_freq=2, step_size=1, gamma=0.5,
        augment=True, **RESUMED[case],
    )  # fmt: skip
    whole = run_training(config.model_copy(update={"experiment_name": "whole"}))
    killed = {**config.model_dump(), "experiment_name": "x"}
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(killed)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not Path("checkpoints/x_final.pth").exists()
    again = {**config.model_dump(), "resume": "checkpoints/x_epoch_2.pth"}
    resumed = run_training(TrainConfig.parse(again))
    assert resumed["experiment_name"] == "x"  # it goes on under its name
    for key in ("best_accuracy", "test_results"):
        assert resumed[key] == whole[key]
    assert without_times(resumed["training_history"]) == without_times(whole["training_history"])
    assert len(resumed["training_history"]) == 4
    first, second = (read_checkpoint(f"checkpoints/{n}_final.pth") for n in ("whole", "x"))
    assert same_tensors(first["training"], second["training"])
    assert same_tensors(first["weights"], second["weights"])
    events = EventAccumulator("logs/x").Reload()
    assert [e.step for e in events.Scalars("train_loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(("save_freq", "way"), [(1, r"x_epoch_1\.pth"), (10, r"x_best\.pth")])
def test_an_interrupted_run_says_how_to_go_on(folder, monkeypatch, capsys, save_freq, way):
    def interrupt(epoch, step, loss):
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        "kdtune.training.run_files.RunFiles.log_step", lambda self, *a: interrupt(*a)
    )
    config = small_config(folder, method="student", experiment_name="x", save_freq=save_freq)
    with pytest.raises(KeyboardInterrupt, match="run it again with resume set to .*" + way):
        run_training(config)
    assert "interrupted after epoch 1; to resume, run it again with" in capsys.readouterr().err


def test_progress_is_said_every_print_freq_steps(folder, capsys):
    run_training(small_config(folder, method="student", epochs=1, print_freq=4))
    said = capsys.readouterr().err
    assert "epoch 1/1, step 4: loss" in said and "epoch 1/1, step 8: loss" in said
    assert "step 1:" not in said and "step 5:" not in said


def test_the_log_has_settings_rate_and_parts_of_the_loss(folder, teacher_file):
    config = small_config(
        folder, teacher_model=str(teacher_file), experiment_name="x", step_size=1
    )
    run = run_training(config)
    log = Path("logs/x.log").read_text()
    [settings] = re.findall(r"settings: (.*)", log)
    assert json.loads(settings) == run["config"]
    first, second = re.findall(r"lr (\S+), .*at (\S+), at_weighted (\S+)", log)
    for found, row in zip((first, second), run["training_history"], strict=True):
        expected = [row[key] for key in ("lr", "loss_at", "loss_at_weighted")]
        assert [*map(float, found)] == pytest.approx(expected, rel=1e-5)


def test_a_notebook_has_bars_on_stdout_and_no_red_lines(folder, monkeypatch, capsys):
    for module in ("kdtune.training.run_files", "kdtune.runtime.console"):
        monkeypatch.setattr(f"{module}.in_notebook", lambda: True)
    config = small_config(folder, method="student", experiment_name="x", print_freq=4)
    result = run_training(config)
    out, err = capsys.readouterr()
    assert "2/2" in out and f"best={100 * result['best_accuracy']:.2f} %" in out
    assert "/9 [" in out  # steps of an epoch
    assert not err and "epoch 2/2: loss" not in out
    log = Path("logs/x.log").read_text()
    assert "epoch 2/2: loss" in log and "epoch 1/2, step 4: loss" in log


def test_a_function_gets_each_epoch_and_may_end_the_run(folder):
    def stop(metrics):
        seen.append(metrics)
        if metrics["epoch"] == 2:
            raise StopIteration("enough")

    seen = []
    config = small_config(folder, experiment_name="x").model_dump()
    run = train_at(config, on_epoch=seen.append)
    assert seen == run["training_history"] and len(seen) == 2
    with pytest.raises(StopIteration, match="enough"):
        train_fitnets(
            {"data_dir": str(folder), "image_size": 8, "epochs": 3, "experiment_name": "y"},
            on_epoch=stop,
        )
    assert [row["epoch"] for row in seen[2:]] == [1, 2]
    assert Path("checkpoints/y_best.pth").exists()


def test_a_run_without_teacher_says_so_once(folder, capsys):
    run_training(small_config(folder, method="at", epochs=2))
    assert capsys.readouterr().err.count("No teacher") == 1


@pytest.mark.parametrize(
    ("create", "train"), [(create_at_config, train_at), (create_fitnets_config, train_fitnets)]
)
def test_the_notebook_faces(folder, teacher_file, create, train):
    config = create(
        data_dir=str(folder), image_size=IMAGE_SIZE, epochs=1, teacher_model=str(teacher_file)
    )
    result = train(config)
    assert set(result) == {
        "model", "teacher_model", "best_accuracy", "training_history", "test_results", "config",
        "experiment_name",
    }  # fmt: skip
    name = result["experiment_name"]
    assert result["config"] == {**config, "experiment_name": name, "bit_depth": 16}


def test_a_run_goes_on_only_with_its_own_settings(folder):
    settings = {"method": "student", "epochs": 2, "save_freq": 1}
    run_training(small_config(folder, experiment_name="x", **settings))
    settings["resume"] = "checkpoints/x_epoch_1.pth"
    check_run(small_config(folder, **settings))
    for change, sentence in (
        ({"model": "ResNet18"}, "was trained with model 'MultiBranchNet', not 'ResNet18'"),
        ({"lr": 0.5}, "was trained with lr 0.01, not 0.5"),
        ({"epochs": 1}, "is at epoch 1 of 1: nothing is left to train"),
        ({"lr_scheduler": "cosine"}, "was trained with lr_scheduler 'step', not"),
        ({"recipe": "strong"}, "was trained with recipe 'seed', not 'strong'"),
    ):
        for run in (check_run, run_training):
            with pytest.raises(UserError, match=sentence):
                run(small_config(folder, **settings | change))


def test_a_run_goes_on_that_a_version_with_fewer_settings_began(folder):
    settings = {"method": "dkd", "experiment_name": "x", "epochs": 2, "save_freq": 1}
    whole = run_training(small_config(folder, **settings))["training_history"]
    path = Path("checkpoints/x_epoch_1.pth")
    content = read_checkpoint(path)
    del content["config"]["cuda_graph"], content["config"]["ema_decay"]
    write_checkpoint(path, content)
    config = small_config(folder, **settings, resume=str(path))
    assert run_training(config)["training_history"][1]["train_loss"] == whole[1]["train_loss"]
    with pytest.raises(UserError, match="was trained with ema_decay 0.0, not 0.5"):
        run_training(config.model_copy(update={"ema_decay": 0.5}))


def test_more_epochs_would_change_the_course_of_a_cosine(folder):
    settings = {"method": "student", "lr_scheduler": "cosine", "epochs": 2, "save_freq": 1}
    run_training(small_config(folder, experiment_name="x", **settings))
    with pytest.raises(UserError, match="was trained with epochs 2, not 3"):
        longer = {**settings, "epochs": 3, "resume": "checkpoints/x_epoch_1.pth"}
        run_training(small_config(folder, **longer))


def test_a_run_goes_on_only_under_the_conditions_it_had(folder, teacher_file, tmp_path):
    settings = {"method": "at", "experiment_name": "x", "image_size": IMAGE_SIZE, "epochs": 2}
    train_at({**settings, "epochs": 1}, loader_of(), loader_of())
    settings["resume"] = "checkpoints/x_final.pth"
    with pytest.raises(
        UserError, match="trained with validation images, and cannot be resumed wi"
    ):
        train_at(settings, loader_of())
    with pytest.raises(UserError, match="was trained for 3 classes, which are not the 4 of these"):
        train_at(settings, loader_of(classes=4), loader_of())
    with pytest.raises(
        UserError, match="was trained without a teacher, and cannot be resumed with"
    ):
        train_at({**settings, "teacher_model": str(teacher_file)}, loader_of(), loader_of())


@pytest.mark.parametrize(
    "mistake", [{"hint_layer": 9}, {"device": "cuda:99"}, {"model": "ResNet81"}, {"method": "x"}]
)
def test_a_mistake_leaves_no_files(folder, teacher_file, tmp_path, mistake):
    settings = {"method": "fitnets", "teacher_model": str(teacher_file), **mistake}
    with pytest.raises(UserError):
        run_training(small_config(folder, **settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["save_dir", "log_dir"])
def test_a_folder_that_cannot_be_made_is_found_before_training(folder, tmp_path, capsys, key):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x cannot be created: Not a directory"):
        run_training(small_config(folder, **{key: "file/x"}))
    with pytest.raises(UserError, match="file cannot be created: File exists"):
        train_teacher(small_config(folder, method="student"), Path("file/teacher.pth"))
    assert "epoch" not in capsys.readouterr().err


def test_a_wrong_checkpoint_is_found_before_images_are_decoded(folder, teacher_file, monkeypatch):
    monkeypatch.setattr("kdtune.training.run.open_single_run", None)
    with pytest.raises(UserError, match="it holds a network, but no run"):
        run_training(small_config(folder, resume=str(teacher_file)))


def test_runs_without_a_name_get_different_ones(folder):
    first, second = (run_training(small_config(folder, epochs=1)) for _ in "ab")
    assert first["experiment_name"] != second["experiment_name"]


def test_momentum_survives_a_change_of_memory_format(folder, monkeypatch):
    """A run may be resumed on a machine where another format is the fast one."""
    settings = {"method": "student", "model": "ResNet18", "precision": "float32", "save_freq": 1}
    whole = run_training(small_config(folder, experiment_name="a", **settings))
    monkeypatch.setattr(
        "kdtune.models.on_device._has_depthwise_convolutions", lambda model: True
    )  # takes channels_last
    path = "checkpoints/a_epoch_1.pth"
    crossed = run_training(small_config(folder, resume=path, **settings))
    losses = [run["training_history"][1]["train_loss"] for run in (whole, crossed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_run_names_its_device_and_a_change_of_it(folder, monkeypatch, capsys):
    settings = {"method": "student", "precision": "float32", "save_freq": 1}
    monkeypatch.setattr("kdtune.models.on_device.gpu_name", lambda device: "Tesla T4")
    monkeypatch.setattr("kdtune.training.run_files.gpu_software", lambda: {"cuda": "13.0"})
    run_training(small_config(folder, experiment_name="x", epochs=2, **settings))
    threads = torch.get_num_threads()
    assert f"Tesla T4, float32; threads {threads}; cuda 13.0\n" in capsys.readouterr().err
    monkeypatch.setattr("kdtune.models.on_device.gpu_name", lambda device: "NVIDIA A100")
    settings["resume"] = "checkpoints/x_epoch_1.pth"
    run_training(small_config(folder, epochs=2, **settings))
    change = "trained on Tesla T4, float32 before, and train on NVIDIA A100, float32 now"
    assert change in capsys.readouterr().err and change in Path("logs/x.log").read_text()
    monkeypatch.setattr("kdtune.models.on_device.gpu_name", lambda device: None)
    del settings["resume"]
    run_training(small_config(folder, experiment_name="y", epochs=2, **settings))
    said = capsys.readouterr().err
    assert f"cpu; threads {threads}\n" in said and "before" not in said


def test_the_best_weights_are_kept_although_the_best_epoch_was_before_the_resume(folder):
    settings = {"method": "student", "lr": 0.05, "gamma": 0.5, "step_size": 1, "save_freq": 1}
    whole = run_training(small_config(folder, experiment_name="x", epochs=4, **settings))
    best = load_model("checkpoints/x_best.pth")["epoch"]
    late = load_model(f"checkpoints/x_epoch_{best}.pth")["epoch"]
    epochs = late + 1 if late < 4 else 5
    resumed = run_training(
        small_config(folder, experiment_name="y", epochs=epochs,
                     resume=f"checkpoints/x_epoch_{late}.pth", **settings)
    )  # fmt: skip
    kept = load_model("checkpoints/y_best.pth")
    assert kept["validation_accuracy"] == resumed["best_accuracy"] >= whole["best_accuracy"]


def loader_of(count=24, size=IMAGE_SIZE, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    data = torch.utils.data.TensorDataset(images, torch.arange(count) % classes)
    return torch.utils.data.DataLoader(data, batch_size=6, shuffle=True)


class TestLoadersOfOnesOwn:
    config = create_at_config(image_size=IMAGE_SIZE, epochs=2)

    def test_classes_are_counted(self):
        result = train_at(self.config, loader_of(), loader_of(classes=4))
        assert result["model"](torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))[0].shape == (1, 4)
        assert result["test_results"] is None and 0 <= result["best_accuracy"] <= 1

    def test_classes_are_the_teachers(self, teacher_file, foreign_teacher):
        for teacher in (teacher_file, foreign_teacher):
            config = {**self.config, "teacher_model": str(teacher)}
            taught = train_at(config, loader_of(), loader_of())
            assert taught["model"](torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))[0].shape == (1, 10)

    def test_any_iterable_will_do(self):
        batches = [(images, labels) for images, labels in loader_of()]
        result = train_at(self.config, batches, tuple(batches), batches[:1])
        assert len(result["training_history"]) == 2
        assert set(result["test_results"]) == {"loss", "accuracy", "balanced_accuracy"}

    def test_other_number_formats_will_do(self):
        tensors = [(images, labels) for images, labels in loader_of()]
        plain = train_at(self.config, tensors, tensors)["training_history"]
        for change in (
            lambda x, y: (x.numpy(), y.numpy()),
            lambda x, y: (x.double(), y.to(torch.uint8)),
            lambda x, y: (x, y.int()),
            lambda x, y: (x, y.tolist()),
        ):
            batches = [change(*batch) for batch in tensors]
            history = train_at(self.config, batches, batches)["training_history"]
            assert without_times(history) == without_times(plain)

    def test_a_bad_test_loader_is_found_before_training(self):
        wide = loader_of(size=16)
        for loader, sentence in (([], "test_loader has no batch"), (wide, "of test_loader are")):
            with pytest.raises(UserError, match=sentence):
                train_at(self.config, loader_of(), loader_of(), loader)
        assert not Path("logs").exists()

    def test_loaders_of_other_classes_are_refused(self, folder, tmp_path):
        write_digits(tmp_path / "few" / "train", 4)
        shutil.rmtree(tmp_path / "few" / "train" / "digit-3")
        few = prepare_dataloaders(str(tmp_path / "few"), num_workers=0, image_size=IMAGE_SIZE)
        many = prepare_dataloaders(str(folder), num_workers=0, image_size=IMAGE_SIZE)
        with pytest.raises(UserError, match="The classes of val_loader are not those"):
            train_at(self.config, many[0], few[1])
        part = torch.utils.data.Subset(many[1].dataset, range(3))
        with pytest.raises(UserError, match="The classes of test_loader are not those"):
            train_at(self.config, few[0], few[1], torch.utils.data.DataLoader(part))

    def test_without_validation_images_the_last_epoch_counts(self, tmp_path):
        config = {**self.config, "experiment_name": "x"}
        result = train_at(config, loader_of())
        assert result["best_accuracy"] is None
        assert result["training_history"][0]["validation_accuracy"] is None
        best, final = (read_checkpoint(f"checkpoints/x_{n}.pth") for n in ("best", "final"))
        assert best["epoch"] == 2 and same_tensors(best["weights"], final["weights"])
        assert same_tensors(dict(result["model"].state_dict()), dict(final["weights"]))

    def test_loaders_take_the_place_of_the_folders_splits(self, folder):
        config = small_config(folder, method="at", experiment_name="x").model_dump()
        whole = train_at(config)
        _, validation, test = prepare_dataloaders(str(folder), 16, 0, image_size=IMAGE_SIZE)
        same = train_at(config, val_loader=validation, test_loader=test)
        assert same["best_accuracy"] == whole["best_accuracy"]
        assert same["test_results"] == whole["test_results"]
        one = train_at(config, test_loader=[next(iter(test))])
        assert one["best_accuracy"] == whole["best_accuracy"]

    @pytest.mark.parametrize(
        ("loader", "sentence"),
        [
            (loader_of(size=16), r"images of train_loader are \(16, 16\), but image_size is 8"),
            ((x for x in loader_of()), "a generator cannot be iterated over again"),
            ([torch.zeros(2, 3, 8, 8)], r"two tensors .* it gave a tensor \[2, 3, 8, 8\]"),
            (5, "train_loader must be a DataLoader, or a list of batches"),
            ([(torch.zeros(2, 3, 8, 8), ["a", "b"])], r"it gave \(a tensor \[2, 3, 8, 8\], \(str"),
            ([(torch.zeros(2, 3, 8, 8).long(), torch.zeros(2).long())], "give uint8, or"),
            ([(torch.zeros(2, 3, 8, 8), torch.tensor([0, -100]))], "the label -100, but there a"),
            ([(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())], r"images \[B, 3, H, W\]"),
            ([(torch.zeros(2, 3, 8, 8), torch.zeros(3).long())], "as many labels as images"),
            ([(torch.zeros(2, 3, 8, 8), torch.zeros(2))], r"labels \[B\]"),
            ([], "train_loader has no batch"),
            ([(torch.zeros(1, 3, 8, 8), torch.zeros(1).long())], "no batch with more than one im"),
        ],
    )
    def test_what_a_loader_must_give_is_said(self, loader, sentence):
        with pytest.raises(UserError, match=sentence):
            train_at(self.config, loader, loader_of())

    def test_a_label_without_a_class_is_said(self, teacher_file):
        config = {**self.config, "teacher_model": str(teacher_file)}
        with pytest.raises(UserError, match="train_loader has the label 10, but there are 10 cl"):
            train_at(config, loader_of(classes=11), loader_of())


def test_a_teacher_keeps_its_best_weights_in_one_file(folder, tmp_path):
    out = tmp_path / "teacher.pth"
    config = small_config(folder, method="student", epochs=3)
    torch.set_num_threads(2)
    result = train_teacher(config, out, threads=1)
    assert torch.get_num_threads() == 1
    loaded = load_model(out)
    assert loaded["validation_accuracy"] == result["validation_accuracy"]
    assert loaded["test_accuracy"] == result["test_accuracy"]
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.pth"]
    best = max(result["validation_accuracy"], 0)
    data = find_images(str(folder))
    batches = Batches(decode_images(data.validation, IMAGE_SIZE), data.validation.labels)
    assert evaluate(loaded["model"], batches, config)["accuracy"] == best
    content = out.read_bytes()
    with pytest.raises(UserError, match="already exists"):
        train_teacher(config, out)
    assert out.read_bytes() == content


def test_a_data_set_without_test_images_has_no_test_figure(tmp_path):
    write_digits(tmp_path / "d" / "train", 8)
    config = small_config(tmp_path / "d", method="student", epochs=1)
    assert run_training(config)["test_results"] is None
    assert train_teacher(config, tmp_path / "t.pth")["test_accuracy"] is None


def test_a_file_of_settings_is_run_and_compared(folder, tmp_path):
    config = small_config(folder, method="student", experiment_name="x").model_dump()
    accuracy = run_training(small_config(folder, method="student"))["best_accuracy"]
    provenance = {"best_validation_accuracy": accuracy, "threads": 1}
    provenance["settings_sha256"] = hash_settings(config)
    write_yaml(tmp_path / "x.yaml", {**config, "provenance": provenance})
    torch.set_num_threads(2)
    result = train_from_file(tmp_path / "x.yaml")
    assert torch.get_num_threads() == 1
    assert result["best_accuracy"] == result["recorded_accuracy"] == accuracy
    assert result["causes"] == []
    machine = {"torch": "1.0", "cpus": os.cpu_count()}
    other = {"best_validation_accuracy": 2.0, "data_fingerprint": "f", "environment": machine}
    write_yaml(tmp_path / "y.yaml", {**config, "provenance": {**provenance, **other}})
    assert train_from_file(tmp_path / "y.yaml")["causes"] == [
        f"data_fingerprint was f, and is {find_images(str(folder)).fingerprint}",
        f"torch was 1.0, and is {version('torch')}",
    ]
    result = train_from_file(tmp_path / "y.yaml", threads=2)
    assert torch.get_num_threads() == result["training_history"][-1]["threads"] == 2
    assert "threads was 1, and is 2" in result["causes"]
    for threads in ("two", 0):
        wrong = {**config, "provenance": {**provenance, "threads": threads}}
        write_yaml(tmp_path / "y.yaml", wrong)
        with pytest.raises(UserError, match="threads cannot be .*; give a whole number"):
            train_from_file(tmp_path / "y.yaml")
    write_yaml(tmp_path / "x.yaml", {**config, "lr": 0.5, "provenance": provenance})
    assert train_from_file(tmp_path / "x.yaml")["recorded_accuracy"] is None


@pytest.mark.parametrize(
    "settings", [{"class_weights": "balanced"}, {"balanced_sampling": True}], ids=lambda s: [*s][0]
)
def test_what_needs_the_images_is_refused_with_a_loader(folder, settings):
    config = small_config(folder, method="student", **settings)
    with pytest.raises(UserError, match=f"{[*settings][0]} has no effect on a train_loader of"):
        run_training(config, [])


def test_a_run_says_what_it_leaves_out(folder, capsys):
    """A batch has 137 of the 140 images; the other 3 would be another."""
    run_training(small_config(folder, method="student", epochs=1, batch_size=137))
    said = capsys.readouterr().err
    assert "each epoch leaves out 3 of 140 training images" in said and "of 1 steps" in said


def test_a_run_with_patience_is_final_when_it_stops(folder):
    config = small_config(folder, method="student", epochs=9, lr=1e-6, patience=1)
    done = run_training(config.model_copy(update={"experiment_name": "x"}))
    last = read_checkpoint("checkpoints/x_final.pth")["epoch"]
    assert last == len(done["training_history"]) < 9


def test_a_recipe_gives_what_a_file_leaves_out(folder, tmp_path):
    settings = {"method": "student", "data_dir": str(folder), "image_size": 8, "epochs": 1}
    write_yaml(tmp_path / "run.yaml", {**settings, "lr": 0.02})
    config = train_from_file(tmp_path / "run.yaml", recipe="strong")["config"]
    assert (config["recipe"], config["lr"], config["nesterov"]) == ("strong", 0.02, True)
    write_yaml(tmp_path / "run.yaml", {**settings, "recipe": "seed"})
    with pytest.raises(UserError, match="run.yaml names the recipe 'seed'; leave --recipe out"):
        train_from_file(tmp_path / "run.yaml", recipe="strong")


def test_a_transformer_teaches_and_learns(folder, tmp_path):
    pytest.importorskip("timm")
    base = {"image_size": 32, "train_images": 40, "epochs": 1, "seed": 1}
    train_teacher(
        small_config(folder, **base, method="student", model="timm:test_vit"), tmp_path / "vit.pth"
    )
    taught = small_config(
        folder, **base, method="at", teacher_model=str(tmp_path / "vit.pth"), beta=10.0
    )
    of_stages = run_training(taught)
    assert of_stages["training_history"][0]["loss_at_weighted"] > 0
    of_layers = run_training(taught.model_copy(update={"teacher_layers": "blocks.1,blocks.5"}))
    assert of_layers["config"]["teacher_layers"] == "blocks.1,blocks.5"
    losses = [run["training_history"][0]["loss_at"] for run in (of_stages, of_layers)]
    assert losses[0] != losses[1]  # targets of other layers are not taken from the cache

    torch.save(of_stages["model"].state_dict(), tmp_path / "cnn.pth")
    teacher = f"MultiBranchNet={tmp_path / 'cnn.pth'}"
    learned = run_training(
        small_config(
            folder,
            **base,
            method="fitnets",
            teacher_model=teacher,
            model="timm:test_vit",
            beta=1.0,
        )
    )
    assert learned["training_history"][0]["loss_feature_weighted"] > 0
    assert learned["model"](torch.rand(2, 3, 32, 32))[1][-1].shape == (2, 64, 2, 2)


def test_a_teacher_that_gives_nan_is_refused_before_training(folder, teacher_file, tmp_path):
    content = read_checkpoint(teacher_file)
    content["weights"]["stem.0.weight"][0, 0, 0, 0] = float("nan")
    write_checkpoint(tmp_path / "nan.pth", content)
    config = small_config(folder, method="at", teacher_model=str(tmp_path / "nan.pth"))
    with pytest.raises(
        UserError, match=r"nan.pth gives values that are not finite \(for (\d+) of \1"
    ):
        run_training(config)
    assert not Path("checkpoints").exists()
