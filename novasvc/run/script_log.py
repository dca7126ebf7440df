"""Default logging of plain scripts: standard output, unless the script has begun to log."""

import sys

from twisted.logger import globalLogBeginner

from novasvc._compat import is_log_begun
from novasvc.config import Settings
from novasvc.telemetry.logs import make_observer


def begin_logging(settings: Settings) -> None:
    """Log to standard output, buffered events included; does nothing if logging has begun.

    :param settings: log_level and log_json are used.
    """
    if is_log_begun():
        return
    observer = make_observer(sys.stdout, as_json=settings.log_json, level=settings.log_level)
    # print() of a script must not become a log event.
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
