"""Messages on stderr while something takes long."""

import io
import re
import sys
import time

import pytest

from kdtune.runtime import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("screen", [io.StringIO, Terminal])
def test_what_takes_long_is_said_and_in_a_terminal_again(monkeypatch, screen):
    monkeypatch.setattr(sys, "stderr", screen())
    monkeypatch.setattr(console, "FIRST_WORD_SECONDS", 0.05)
    monkeypatch.setattr(console, "NEXT_WORD_SECONDS", 0.05)
    said = []
    with console.waiting("loading", said.append):
        time.sleep(0.5)
    assert said[0] == "loading"
    assert (len(said) > 1) == (screen is Terminal)
    assert all(re.fullmatch(r"loading: \d+ s so far", line) for line in said[1:])
    count = len(said)
    time.sleep(0.2)
    assert len(said) == count


def test_nothing_is_said_of_what_is_short():
    said = []
    with console.waiting("loading", said.append):
        pass
    with pytest.raises(ValueError), console.waiting("loading", said.append):
        raise ValueError
    assert said == []
