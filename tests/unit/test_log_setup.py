"""Log lines on the console."""

import logging
import re

import pytest
from tqdm import tqdm

from library.settings.flag_groups import RunArgs
from library.settings.log_setup import setup_logging


def test_a_log_line_stands_on_a_line_of_its_own_beside_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    setup_logging(RunArgs(console_log_simple=True))
    with tqdm(total=2, desc="latents"):
        logging.getLogger("test").info("0 of 2 in the cache")
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert "0 of 2 in the cache" in lines
    assert lines.index("0 of 2 in the cache") < max(n for n, line in enumerate(lines) if "0/2" in line), "shown on"
