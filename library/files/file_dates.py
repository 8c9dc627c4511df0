"""Which time is written into a file, so that equal runs write equal files.

See docs/decisions/0001-reproducible-files.md.
"""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

SOURCE_DATE_EPOCH = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch/


def _local_now() -> datetime:
    return datetime.now().astimezone()


def file_date(
    seed_given: bool, environ: Mapping[str, str] = os.environ, now: Callable[[], datetime] = _local_now
) -> datetime | None:
    """The time to write: SOURCE_DATE_EPOCH (UTC) where it is set; else none when the run has a seed; else now.

    Raises ValueError when SOURCE_DATE_EPOCH is not a number of seconds.
    """
    given = environ.get(SOURCE_DATE_EPOCH)
    if given is not None:
        try:
            return datetime.fromtimestamp(int(given), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(
                f"{SOURCE_DATE_EPOCH}={given} in the environment: it must be whole seconds since 1970, or unset"
            ) from error
    return None if seed_given else now()
