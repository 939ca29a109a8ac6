"""Signals while trials run: what Ctrl-C and SIGTERM do, and when."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from kdtune.runtime.signals import InterruptHandler, Terminated, defer_interrupt


@pytest.fixture
def said():
    return []


def test_the_first_ctrl_c_asks_and_the_second_one_stops(said):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with InterruptHandler(20, said.append) as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.stop_requested and not interrupts.terminated
        assert said == ["finishing the running epochs; press Ctrl-C again to stop at once"]
        interrupts.check_deadline()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_leaves_a_time(said):
    with InterruptHandler(0.2, said.append) as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.stop_requested and interrupts.terminated
        interrupts.check_deadline()
        threading.Event().wait(0.25)
        with pytest.raises(Terminated):
            interrupts.check_deadline()


def test_a_second_sigterm_stops(said):
    with InterruptHandler(20, said.append), pytest.raises(Terminated):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)


def test_elsewhere_than_in_the_main_thread_nothing_is_changed(said):
    found = []

    def work():
        with InterruptHandler(20, said.append):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_a_deferred_ctrl_c_comes_afterwards():
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with defer_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("done")
    assert steps == ["done"]
    with defer_interrupt():
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_an_epoch_has_ended_the_first_signal_stops_at_once(said, number):
    with InterruptHandler(20, said.append, has_progress=lambda: False) as interrupts:
        with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert interrupts.stop_requested and interrupts.terminated == (number == signal.SIGTERM)
    assert said == []


def test_a_process_that_hangs_after_sigterm_ends_with_its_last_words():
    code = (
        "import os, signal; from kdtune.runtime import signals; signals.OVERDUE_SECONDS = 0.1\n"
        "with signals.InterruptHandler(0.1, print, describe_interrupt=lambda: 'resume it'):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while True: pass"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "kdtune: interrupted: resume it\n")
