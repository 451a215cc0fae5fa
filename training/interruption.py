"""SIGTERM and Ctrl-C stop a run where it can be continued."""

import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A run was stopped from outside, and can be continued.

    Not an `Exception`, like `KeyboardInterrupt`: TensorFlow wraps those that come as it traces.

    Args:
        number: The signal's number; a program ends with exit code 128 more.
    """

    def __init__(self, number: int):
        super().__init__(f"Stopped by {signal.Signals(number).name}.")
        self.exit_code = 128 + number


class Signals:
    """SIGTERM and Ctrl-C, as long as it is entered; those that are ignored stay so.

    Python gives signals to its main thread: in another one they are left alone.

    While `waits` is true the first one is only remembered, for a callback to act on when the step
    has ended. All others raise `Interrupted` at once.
    """

    def __init__(self):
        self.waits = False
        self.received = None

    def __enter__(self) -> "Signals":
        """Takes the signals over."""
        is_main = threading.current_thread() is threading.main_thread()
        taken = [n for n in SIGNALS if is_main and signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in taken}
        return self

    def __exit__(self, *_):
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if not self.waits or self.received:
            raise Interrupted(number)
        self.received = number
