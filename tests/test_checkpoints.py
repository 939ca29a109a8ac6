"""Checkpoints: what comes back, and what is refused."""

import argparse
import os

import numpy as np
import pytest
import torch
from conftest import small_config

from kdtune.checkpoints import load_model, read_checkpoint, save_model
from kdtune.errors import UserError
from kdtune.models import MODELS, build_model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_as_it_was(tmp_path, name):
    config = small_config("digits", model=name).model_dump()
    model = build_model(name, 3, config["image_size"]).eval()
    save_model(tmp_path / "m.pth", model, config=config, classes=["a", "b", "c"], epoch=4)
    loaded = load_model(tmp_path / "m.pth")
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded["model"](images)[0], model(images)[0])
    assert not loaded["model"].training
    assert (loaded["config"], loaded["classes"], loaded["epoch"]) == (config, ["a", "b", "c"], 4)


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harmed",))


@pytest.mark.parametrize("override", ["0", "1"])
def test_a_file_that_holds_code_never_runs_it(tmp_path, monkeypatch, override):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", override)
    torch.save({"format": "kdtune-1", "weights": Harmful()}, "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth is not loaded.*\(posix\.mkdir\)"):
        read_checkpoint("bad.pth")
    assert not (tmp_path / "harmed").exists()


def text(path):
    path.write_text("not a checkpoint")


def empty(path):
    path.touch()


def cut(path):
    torch.save({"format": "kdtune-1", "x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


def namespace(path):
    torch.save({"opt": argparse.Namespace()}, path)


def foreign(path):
    torch.save({"weights": torch.zeros(1)}, path)


def test_random_damage_is_a_sentence_or_harmless(tmp_path):
    path = tmp_path / "m.pth"
    random = np.random.default_rng(0)
    for legacy in (False, True):
        content = {"format": "kdtune-1", "weights": {"a": torch.zeros(50)}, "classes": ["a", "b"]}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        refused = 0
        for _ in range(150):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), 3):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged[: random.integers(1, len(whole))])
            try:
                load_model(path)
            except UserError:
                refused += 1
        assert refused == 150


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (text, "is not loaded: it is broken"),
        (empty, "is not a readable checkpoint: it is empty|Ran out of input"),
        (cut, "is not a readable checkpoint"),
        (namespace, r"\(argparse\.Namespace\)"),
        (foreign, "was not written by kdtune"),
        (lambda path: None, "There is no file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, make, sentence):
    make(tmp_path / "x.pth")
    with pytest.raises(UserError, match=sentence) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
