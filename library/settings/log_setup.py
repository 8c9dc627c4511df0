"""Where log lines go and how they look, by the console flags."""

import logging

from library.settings.flag_groups import RunArgs

SIMPLE = "%(message)s"
FULL = "%(asctime)s %(levelname)-7s %(message)s"


class ConsoleHandler(logging.StreamHandler):
    """Writes to the console, above a progress bar and not into its line."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        from tqdm import tqdm  # not for --help

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def setup_logging(options: RunArgs) -> None:
    """Send this program's log lines to the console, or to --console_log_file."""
    level = options.console_log_level or "INFO"
    handler: logging.Handler
    if options.console_log_file:
        handler = logging.FileHandler(options.console_log_file, encoding="utf-8")
    else:
        handler = ConsoleHandler()
    handler.setFormatter(logging.Formatter(SIMPLE if options.console_log_simple else FULL, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
