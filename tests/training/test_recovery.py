import os
import signal
import threading

import pytest

from gmtool.training.recovery import finishing_the_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_does_not(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), finishing_the_step() as told:
        assert not told()
        os.kill(os.getpid(), number)
        assert told()
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_another_thread_is_never_told():
    answers = []

    def work():
        with finishing_the_step() as told:
            answers.append(told())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
