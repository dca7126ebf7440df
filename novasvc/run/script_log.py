"""The log of a plain script: on standard output, unless the script logs elsewhere."""

import sys

from twisted.logger import globalLogBeginner

from novasvc.config import Settings
from novasvc.telemetry.logs import make_observer


def is_log_begun() -> bool:
    """Tell whether somebody has begun to log in this process."""
    # Twisted has no other way to ask.
    return getattr(globalLogBeginner, "_temporaryObserver", None) is None


def begin_log(settings: Settings) -> None:
    """Log to standard output from now on, and what was logged before; nothing happens if somebody has begun to log.

    :param settings: log_level and log_json are used.
    """
    if is_log_begun():
        return
    observer = make_observer(sys.stdout, as_json=settings.log_json, level=settings.log_level)
    # What a script prints is its own business.
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
