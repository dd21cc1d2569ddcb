"""SIGTERM and Ctrl-C: noted within a training step, raised elsewhere, and handlers given back."""

import os
import signal
import threading

import pytest

from fewstep.pipeline.training.signals import PendingSignal, deferred_signals, raising_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_within_a_step_a_signal_is_only_noted_and_at_the_end_raised(number):
    before, noted = signal.getsignal(number), []

    def work():
        with deferred_signals() as pending:
            noted.append(pending.number)
            pending.leave()  # nothing to leave for
            os.kill(os.getpid(), number)
            noted.append(pending.number)

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        work()
    assert noted == [None, number]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "meant"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_leaving_raises_what_the_signal_means(number, meant):
    pending = PendingSignal()
    pending.number = number
    with pytest.raises(meant) as left:
        pending.leave()
    assert getattr(left.value, "code", None) == (143 if number == signal.SIGTERM else None)


def test_elsewhere_a_signal_raises_at_once():
    with raising_signals():
        with pytest.raises(SystemExit) as left:
            os.kill(os.getpid(), signal.SIGTERM)
        assert left.value.code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_training_inside_a_stage_gives_the_stage_its_handlers_back():
    with raising_signals():
        with deferred_signals():
            pass
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def test_in_another_thread_signals_are_left_to_the_main_one():
    seen = []

    def work():
        with raising_signals(), deferred_signals() as pending:
            seen.append(pending.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
