"""Where log lines go and how they look, by the console flags."""

import logging

from library.settings.flag_groups import RunArgs

SIMPLE = "%(message)s"
FULL = "%(asctime)s %(levelname)-7s %(message)s"


def setup_logging(options: RunArgs) -> None:
    """Send this program's log lines to the console, or to --console_log_file."""
    level = options.console_log_level or "INFO"
    handler: logging.Handler
    if options.console_log_file:
        handler = logging.FileHandler(options.console_log_file, encoding="utf-8")
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(SIMPLE if options.console_log_simple else FULL, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
