"""Signals while trials run: what Ctrl-C and SIGTERM do, and when."""

import os
import signal
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
        assert said == ["finishing the running epochs; Ctrl-C again stops at once"]
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
