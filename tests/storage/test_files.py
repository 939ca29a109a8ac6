"""Atomic writes, and errors of YAML files."""

import pytest

from kdtune.errors import UserError
from kdtune.storage.files import atomic_write, parse_yaml_value, read_yaml, write_text, write_yaml


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="killed"), atomic_write(path) as temporary:
        temporary.write_text("new, but only ha")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_yaml_is_read_as_it_was_written(tmp_path):
    content = {"name": "é: 1", "lr": 1e-5, "models": ["A"], "nothing": None}
    write_yaml(tmp_path / "new" / "file.yaml", content)
    assert read_yaml(tmp_path / "new" / "file.yaml") == content


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "is not valid YAML"),
        ("just words", "must hold 'key: value' lines"),
        ("!!python/object/apply:os.system ['touch hacked']", "is not valid YAML"),
    ],
)
def test_bad_yaml_is_an_error_of_one_line(tmp_path, monkeypatch, text, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        read_yaml(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


def test_minutes_and_seconds_are_no_number(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("budget: 1:30\nlong: 1:30:00.5\nlr: 0.1\ntrials: 20\n")
    assert read_yaml(path) == {"budget": "1:30", "long": "1:30:00.5", "lr": 0.1, "trials": 20}
    assert parse_yaml_value("1:30") == "1:30" and parse_yaml_value("1e-3") == "1e-3"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="There is no file .*gone.yaml"):
        read_yaml(tmp_path / "gone.yaml")
