"""The first Ctrl-C waits for the end of the step, the second does not."""

import os
import signal

import pytest

from library.runs.interrupt import FirstInterrupt


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_remembered_and_the_second_raised(first: int) -> None:
    with FirstInterrupt() as interrupt:
        assert not interrupt.asked
        send(first)
        assert interrupt.asked
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_afterwards_signals_do_what_they_did() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with FirstInterrupt():
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
