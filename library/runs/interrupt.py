"""Ctrl-C during training: the step is finished, then the run is saved and ends."""

import logging
import signal
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit status of a command that was ended by Ctrl-C (128 + SIGINT, as shells have it)."""


class FirstInterrupt:
    """Remembers the first Ctrl-C or SIGTERM while entered; the second ends the program at once, as ever.

    An interrupt raised within a step would leave it half done. While a graph runs, MindSpore takes Ctrl-C itself and
    sends the process a SIGTERM, which would end it with nothing said or saved; job schedulers send one too. For the
    main thread only, as signals are.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether there was one."""

    def __enter__(self) -> "FirstInterrupt":
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logger.warning("interrupted: this step is finished and saved; Ctrl-C once more stops at once and saves nothing")
