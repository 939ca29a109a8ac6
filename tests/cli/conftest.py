"""Fixtures of the command line's tests."""

import sys

import pytest

from kdtune.cli.commands import main


@pytest.fixture
def kdtune(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kdtune", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run
