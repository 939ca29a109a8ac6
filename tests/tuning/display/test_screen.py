"""Output to a terminal, a notebook and a file, also where it fails."""

import fcntl
import os
import re
import signal
import struct
import sys
import termios
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from types import ModuleType, SimpleNamespace

import pytest
from rich.text import Text

from kdtune.errors import UserError
from kdtune.tuning.display.screen import REDRAW_SECONDS, SUMMARY_SECONDS, LineKind, Screen
from kdtune.tuning.sweep import resume_sweep, run_sweep

DETAIL, INFO, WARNING = LineKind
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Drawn:
    """Something to draw: how often it was asked."""

    count, failing = 0, False

    def render(self, height):
        if self.failing:
            raise KeyError("broken")
        self.count += 1
        return Text(f"heading of {height} rows\ndrawing {self.count}")

    def summary(self):
        self.count += 1
        return f"drawing {self.count}\x1b[31m[red]" if self.count < 9 else None


@pytest.fixture
def terminal(monkeypatch):
    """Makes stderr a terminal; gives what reads all that was written to it since the last time."""
    primary, secondary = os.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    written: Queue[str] = Queue()

    def drain():  # always, since a terminal that nobody reads blocks who writes
        with suppress(OSError):  # it is closed
            while chunk := os.read(primary, 1 << 16):
                written.put(chunk.decode(errors="replace"))

    def read():
        text = ""
        with suppress(Empty):
            while True:
                text += written.get(timeout=0.05)
        return text.replace("\r\n", "\n")

    reader = Thread(target=drain)
    reader.start()
    with open(secondary, "w", buffering=1) as stream:

        def open_terminal():  # pytest sets its own stderr after fixtures
            monkeypatch.setattr(sys, "stderr", stream)
            return read

        yield open_terminal
    reader.join()
    os.close(primary)


@pytest.mark.parametrize(
    ("show", "said"), [("plain", "abc"), ("verbose", "abc"), ("quiet", "c"), ("live", "abc")]
)
def test_a_file_gets_plain_lines_of_the_kinds_of_its_mode(show, said, capsys):
    screen = Screen(show)
    for kind, text in ((DETAIL, "a"), (INFO, "b"), (WARNING, "c\x1b[31m[red]\n")):
        screen.say(text, kind)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [{"c": r"c\x1b[31m[red]\n"}.get(letter, letter) for letter in said]


def test_a_file_gets_a_summary_every_minute_while_there_is_one(capsys):
    clock = Clock()
    screen, drawn = Screen("plain", clock), Drawn()
    with screen.drawing(drawn):
        for _ in range(25):  # 250 s
            screen.refresh()
            clock.now += 10
        drawn.count = 9
        clock.now += SUMMARY_SECONDS
        screen.refresh()
    said = capsys.readouterr().err
    assert said.splitlines() == [rf"drawing {number}\x1b[31m[red]" for number in (1, 2, 3, 4)]


def test_quiet_is_quiet_for_hours(capsys):
    clock = Clock()
    screen = Screen("quiet", clock)
    with screen.drawing(Drawn()):
        clock.now = 9999
        screen.refresh()
    assert capsys.readouterr().err == ""


def test_an_unknown_way_is_a_sentence():
    with pytest.raises(UserError, match=r"no display mode 'quite'; did you mean 'quiet'\?"):
        Screen("quite")


def test_on_a_terminal_one_place_is_drawn_anew_and_lines_scroll_above(terminal):
    read = terminal()
    clock, stderr = Clock(), sys.stderr
    screen = Screen("live", clock)
    screen.say("before")
    with screen.drawing(Drawn()):
        first = read()
        assert first.startswith("before\n") and HIDDEN in first
        assert "heading of 24 rows" in first and "drawing 1" in first
        screen.refresh()
        assert read() == ""  # it is not time yet
        clock.now += REDRAW_SECONDS
        screen.refresh()
        assert "\x1b[1A" in (second := read()) and "drawing 2" in second
        screen.say("a detail", DETAIL)
        screen.say("[bold]" + "x" * 99)
        print("an error of others", file=sys.stderr)
        above = read()
        assert "a detail" not in above and "[bold]" + "x" * 99 + "\n" in above
        assert "an error of others\n" in above and above.count("drawing 2") == 2
    last = read()
    assert "drawing 3" in last and last.endswith(SHOWN)
    assert sys.stderr is stderr


@pytest.mark.parametrize("way", ["quiet", "verbose", "plain"])
def test_other_ways_do_not_draw_on_a_terminal(terminal, way):
    read = terminal()
    with Screen(way).drawing(Drawn()):
        pass
    assert read() == ""


def test_a_terminal_that_cannot_draw_gets_lines(terminal, monkeypatch):
    terminal()
    monkeypatch.setenv("TERM", "dumb")
    assert Screen("live").show == "plain"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_passes_and_leaves_the_terminal_clean(terminal, error):
    read = terminal()
    stderr = sys.stderr
    with pytest.raises(error), Screen("live").drawing(Drawn()):
        raise error
    assert read().endswith(SHOWN) and sys.stderr is stderr


def test_what_cannot_be_drawn_ends_nothing_but_the_drawing(terminal):
    read = terminal()
    clock, drawn = Clock(), Drawn()
    screen = Screen("live", clock)
    with screen.drawing(drawn):
        drawn.failing = True
        clock.now += REDRAW_SECONDS
        screen.refresh()
        assert screen.show == "plain" and read().endswith(SHOWN)
        screen.say("still here", DETAIL)
        assert read() == "still here\n"
        clock.now += SUMMARY_SECONDS
        screen.refresh()


def test_lines_that_cannot_be_written_are_lost(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    stream = open(write, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    screen = Screen("live")
    screen.say("x")
    with screen.drawing(Drawn()):
        screen.refresh()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_terminal_that_is_gone_ends_nothing(terminal):
    read = terminal()
    clock = Clock()
    screen = Screen("live", clock)
    with screen.drawing(Drawn()):
        read()
        before = os.dup(sys.stderr.fileno())
        broken = os.pipe()
        os.dup2(broken[1], sys.stderr.fileno())
        os.close(broken[0])  # every write is a broken pipe now
        clock.now += REDRAW_SECONDS
        screen.refresh()
        screen.say("lost")
        os.dup2(before, sys.stderr.fileno())
        screen.say("there again")
        assert read().endswith("there again\n")
    os.close(before)
    os.close(broken[1])


def test_a_signal_in_the_middle_of_a_drawing_says_its_line_afterwards(terminal):
    read = terminal()
    screen = Screen("live")

    class Interrupted(Drawn):
        def render(self, height):
            os.kill(os.getpid(), signal.SIGUSR2)
            return super().render(height)

    before = signal.signal(signal.SIGUSR2, lambda *_: screen.warn("from a signal"))
    try:
        with screen.drawing(Interrupted()):
            screen.say("next")
            said = read()
            assert said.index("from a signal\n") < said.index("next\n")
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_notebook_has_one_output_that_changes(monkeypatch, capsys):
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(("update", data)))

    def display(data, raw, display_id):
        shown.append(("display", data))
        return handle

    module = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)
    clock = Clock()
    screen = Screen("live", clock)
    with screen.drawing(Drawn()):
        clock.now += REDRAW_SECONDS
        screen.refresh()
        screen.say("news")
    assert [kind for kind, _ in shown] == ["display", "update", "update"]
    assert shown[-1][1] == {"text/plain": "heading of 48 rows\ndrawing 3"}
    assert capsys.readouterr().err == "news\n"


@pytest.mark.slow
def test_a_sweep_is_drawn_while_it_runs(
    ray_session, folder, terminal, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    read, stderr = terminal(), sys.stderr
    sweep = {
        "name": "x", "data": str(folder), "image_size": 8, "methods": ["student"],
        "models": ["MultiBranchNet"], "baselines": False, "trials": 1, "epochs": 2,
    }  # fmt: skip
    run_sweep(sweep)
    assert sys.stderr is stderr and capsys.readouterr().out == ""
    drawn = read()
    assert drawn.count(HIDDEN) == drawn.count(SHOWN) == 1
    assert re.search(r"student-MultiBranchNet +0/1 +1 +0 ", drawn)
    assert "1/1 slots in use" in drawn or "1/2 slots in use" in drawn
    *_, last = drawn.split("cell ")
    assert re.search(r"student-MultiBranchNet +1/1 +\d\d\.\d\d +0 +1 +0 +0 lr=0\.05 ", last)
    assert "[1/1] student-MultiBranchNet-000 finished" in last

    resume_sweep("results/x", show="quiet")
    assert read() == ""
