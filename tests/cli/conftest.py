"""Fixtures of the command line's tests."""

import sys

import pytest

from kdtune.cli.commands import main


@pytest.fixture
def kdtune(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    # A busy machine would make commands say what they wait for.
    monkeypatch.setattr("kdtune.runtime.console.FIRST_WORD_SECONDS", 600)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kdtune", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run
