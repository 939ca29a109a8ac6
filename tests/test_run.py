"""One run and its files."""

import json

import pytest
import torch
from conftest import SIZE, small_config, write_digits

from kdtune.at import create_at_config, train_at
from kdtune.checkpoints import load_model
from kdtune.config import settings_hash
from kdtune.data.images import find_images
from kdtune.data.views import Batches, decode
from kdtune.errors import UserError
from kdtune.files import write_yaml
from kdtune.fitnets import create_fitnets_config, train_fitnets
from kdtune.run import run_file, run_training, train_teacher
from kdtune.training import evaluate


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
    batches = Batches(decode(data.validation, SIZE), data.validation.labels)
    assert evaluate(result["model"], batches, config)["accuracy"] == result["best_accuracy"]
    batches = Batches(decode(data.test, SIZE), data.test.labels)
    assert evaluate(result["model"], batches, config) == result["test_results"]
    assert load_model("checkpoints/x_best.pth")["validation_accuracy"] == result["best_accuracy"]


def test_a_run_goes_on_from_its_checkpoint(folder):
    settings = dict(method="at", epochs=3, save_freq=1)
    whole = run_training(small_config(folder, experiment_name="whole", **settings))
    resumed = run_training(
        small_config(
            folder, experiment_name="rest", resume="checkpoints/whole_epoch_1.pth", **settings
        )
    )

    def figures(history):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in history]

    assert figures(resumed["training_history"]) == figures(whole["training_history"])[1:]
    for key, value in whole["model"].state_dict().items():
        assert torch.equal(value, resumed["model"].state_dict()[key])
    with pytest.raises(UserError, match="is at epoch 3 of 3: nothing is left to train"):
        run_training(small_config(folder, resume="checkpoints/whole_final.pth", **settings))


def test_a_run_without_teacher_says_so_once(folder, capsys):
    run_training(small_config(folder, method="at", epochs=2))
    assert capsys.readouterr().err.count("No teacher") == 1


@pytest.mark.parametrize(
    ("create", "train"), [(create_at_config, train_at), (create_fitnets_config, train_fitnets)]
)
def test_the_notebook_faces(folder, teacher_file, create, train):
    config = create(
        data_dir=str(folder), image_size=SIZE, epochs=1, teacher_model=str(teacher_file)
    )
    result = train(config)
    assert set(result) == {
        "model", "teacher_model", "best_accuracy", "training_history", "test_results", "config",
        "experiment_name",
    }  # fmt: skip
    assert result["config"] == {**config, "experiment_name": result["experiment_name"]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "ResNet18"}, "was trained with model 'MultiBranchNet', not 'ResNet18'"),
        ({"lr": 0.5}, "was trained with lr 0.01, not 0.5"),
        ({"epochs": 1}, "is at epoch 1 of 1: nothing is left to train"),
    ],
)
def test_a_run_goes_on_only_with_its_own_settings(folder, change, sentence):
    settings = {"method": "student", "epochs": 2, "save_freq": 1}
    run_training(small_config(folder, experiment_name="x", **settings))
    with pytest.raises(UserError, match=sentence):
        run_training(small_config(folder, resume="checkpoints/x_epoch_1.pth", **settings | change))


def test_a_network_without_a_run_cannot_be_resumed(folder, teacher_file):
    with pytest.raises(UserError, match="it holds a network, but no run"):
        run_training(small_config(folder, resume=str(teacher_file)))


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


def test_loaders_of_ones_own(folder, teacher_file):
    images, labels = torch.randn(24, 3, SIZE, SIZE), torch.arange(24) % 3
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), batch_size=6, shuffle=True
    )
    config = create_at_config(image_size=SIZE, epochs=2)
    result = train_at(config, loader, loader)
    assert result["model"](images)[0].shape == (24, 3)
    assert result["test_results"] is None
    with pytest.raises(UserError, match="A val_loader is needed"):
        train_at(config, loader)
    with pytest.raises(UserError, match="needs a train_loader beside it"):
        train_at(config, None, loader)
    with pytest.raises(UserError, match=r"images are \(8, 8\), but image_size is 16"):
        train_at({**config, "image_size": 16}, loader, loader)
    taught = train_at({**config, "teacher_model": str(teacher_file)}, loader, loader)
    assert taught["model"](images)[0].shape == (24, 10)  # as many classes as the teacher knows


def test_a_teacher_keeps_its_best_weights_in_one_file(folder, tmp_path):
    out = tmp_path / "teacher.pth"
    config = small_config(folder, method="student", epochs=3)
    result = train_teacher(config, out)
    loaded = load_model(out)
    assert loaded["validation_accuracy"] == result["validation_accuracy"]
    assert loaded["test_accuracy"] == result["test_accuracy"]
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.pth"]
    best = max(result["validation_accuracy"], 0)
    data = find_images(str(folder))
    batches = Batches(decode(data.validation, SIZE), data.validation.labels)
    assert evaluate(loaded["model"], batches, config)["accuracy"] == best
    content = out.read_bytes()
    with pytest.raises(UserError, match="exists already"):
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
    provenance["settings_sha256"] = settings_hash(config)
    write_yaml(tmp_path / "x.yaml", {**config, "provenance": provenance})
    torch.set_num_threads(2)
    result = run_file(tmp_path / "x.yaml")
    assert torch.get_num_threads() == 1
    assert result["best_accuracy"] == result["recorded_accuracy"] == accuracy
    write_yaml(tmp_path / "x.yaml", {**config, "lr": 0.5, "provenance": provenance})
    assert run_file(tmp_path / "x.yaml")["recorded_accuracy"] is None
