"""Commands on single runs and their networks, and dry runs of all kinds."""

import json

import yaml


def test_a_dry_run_checks_all_and_trains_and_writes_nothing(
    kdtune, tmp_path, folder, teacher_file
):
    run = {
        "method": "at", "data_dir": str(folder), "teacher_model": str(teacher_file),
        "image_size": 8, "model": "MultiBranchNet", "epochs": 1,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    sweep = (
        "sweep", "--name", "x", "--data", folder, "--teacher", teacher_file, "--methods", "at",
        "--models", "MultiBranchNet",
    )  # fmt: skip
    in_place = ("--space", "at.beta=1:1000:log", "--start", "at.beta=10,lr=0.01")
    teacher = ("teacher", "--data", folder, "--image-size", 8, "--out", "t.pth")
    for words in ((*sweep, *in_place), ("train", "run.yaml"), teacher):
        code, out, err = kdtune(*words, "--dry-run")
        assert (code, out) == (0, "All checks passed; nothing was trained.\n")
        assert "200 images of 10 classes" in err
    mistakes = (
        ((*sweep, "--space", "at.batch_size=1.5:3"), "is a whole number"),
        ((*sweep, "--start", "at.lr=1e9"), "is not a point of the space"),
        ((*sweep, "--setting", "lr=1", "--start", "at.lr=0.01"), "the sweep's settings fix lr"),
        ((*sweep, "--cpus-per-trial", "999"), "cpus_per_trial is 999"),
        ((*teacher, "--model", "torchvision:resnet9"), "resnet9"),
    )
    for words, sentence in mistakes:
        code, out, err = kdtune(*words, "--dry-run")
        assert code == 2 and sentence in err and not out
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_folder_is_classified_and_all_its_images_are_evaluated(
    kdtune, tmp_path, folder, teacher_file
):
    code, out, _ = kdtune(
        "predict", teacher_file, folder / "digit-3", "--top", 1, "--format", "csv"
    )
    assert code == 0 and len(out.splitlines()) == 1 + 20
    (tmp_path / "empty").mkdir()
    assert "There are no images in empty" in kdtune("predict", teacher_file, "empty")[2]
    evaluated = {}
    for split in ("test", "all"):
        words = ("evaluate", teacher_file, "--data", folder, "--split", split, "--format", "json")
        code, out, err = kdtune(*words)
        evaluated[split] = json.loads(out)
        assert code == 0 and ("--split all takes all" in err) == (split == "test")
    assert evaluated["all"]["images"] == 200 > evaluated["test"]["images"]
