"""Forms of data that can be named."""

from pathlib import Path

import pytest

from kdtune.config.data_forms import absolute_data, data_form, expand_shards
from kdtune.errors import UserError


@pytest.mark.parametrize(
    ("data", "form"),
    [
        ("folder", "folder"), ("t.csv", "table"), ("t.CSV", "table"), ("t.tsv", "table"),
        ("t.parquet", "table"), ("a-1.tar", "shards"), ("a-{1..2}.tar", "shards"),
        ("a-*.tar", "shards"), ("hf:cifar10", "hugging_face"), ("hf:folder", "hugging_face"),
        ("digits", "name"),
    ],
)  # fmt: skip
def test_data_have_the_form_of_their_name(tmp_path, monkeypatch, data, form):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("t.csv", "t.CSV", "t.tsv", "t.parquet", "a-1.tar", "a-2.tar"):
        (tmp_path / name).touch()
    assert data_form(data) == form


@pytest.mark.parametrize("data", ["no.csv", "no.tar", "no-*.tar", "no-{0..1}.tar", "nothing"])
def test_what_is_missing_is_an_error_in_one_sentence(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"There is no folder .*; give an ImageFolder, a table"):
        data_form(data)


def test_braces_are_expanded_as_by_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a-098.tar", "a-099.tar", "a-100.tar", "b-098.tar", "b-099.tar", "b-100.tar"]
    for name in names:
        Path(name).touch()
    assert list(map(str, expand_shards("{a,b}-{098..100}.tar"))) == names


def test_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert absolute_data("folder") == str(tmp_path / "folder")
    assert absolute_data("s/a-{1..2}.tar") == f"{tmp_path}/s/a-{{1..2}}.tar"
    assert absolute_data("hf:folder") == f"hf:{tmp_path}/folder"
    assert absolute_data("hf:owner/name:config") == "hf:owner/name:config"
    assert absolute_data("digits") == "digits"
