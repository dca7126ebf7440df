"""Cron lines: when they are due, in a time zone."""

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import attrs
from cronsim import CronSim, CronSimError

from novasvc.errors import DeclarationError

_FORM = '"minute hour day-of-month month day-of-week", as in cron="30 3 * * *"'
_FIELDS = 5
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_NEVER = "is never due"
_NO_DAY = "has an invalid day-of-month"
_LATEST = datetime(9900, 1, 1, tzinfo=UTC).timestamp()

# Note [Daylight saving time]
#
# As in Debian's cron. A line with a fixed time, whose minute and hour do not begin with "*", is due once on a day that
# it names: a time that the clocks skip in spring is due at the first minute after the gap, and a time that they repeat
# in autumn is due the first time only. A line with "*" in minute or hour follows the clock on the wall: it is due at
# each time that the clock shows, twice in the repeated hour, and not in the skipped one.


@attrs.frozen
class CronLine:
    """A cron line of five fields in a time zone; see Note [Daylight saving time].

    :param text: as it was declared.
    :param zone: the time zone.
    """

    text: str
    zone: tzinfo

    @property
    def fixed(self) -> bool:
        """Whether it names times of the day: neither minute nor hour begin with "*"."""
        minute, hour = self.text.split()[:2]
        return not minute.startswith("*") and not hour.startswith("*")

    @property
    def zone_name(self) -> str:
        """The name of the time zone, such as "Europe/Berlin"."""
        return str(self.zone)

    def after(self, moment: float) -> float:
        """Return the first due time after a moment; infinity if there is none within 50 years.

        :param moment: Unix seconds.
        """
        if moment >= _LATEST:
            return float("inf")
        for due in self._from(datetime.fromtimestamp(max(0.0, moment), self.zone)):
            # CronSim takes a time of the repeated hour for the first of the two, and may return one that has passed.
            if due.timestamp() > moment:
                return due.timestamp()
        return float("inf")

    def _from(self, start: datetime) -> Iterator[datetime]:
        return CronSim(self.text, start)


def parse_cron(where: str, text: object, timezone: object) -> CronLine:
    """Return the cron line of a declaration.

    :param where: "module.Class.method", for the error.
    :param text: five fields.
    :param timezone: name of a time zone, or a tzinfo.
    :raises DeclarationError: the line is malformed or is never due, or the time zone does not exist.
    """
    zone = _zone(where, timezone)
    if not isinstance(text, str):
        raise DeclarationError(where, f"cron={text!r} is not text", f"write {_FORM}")
    if text.strip().lower() in _ALIASES:
        raise DeclarationError(
            where, f"cron={text!r} is not supported", f'write cron="{_ALIASES[text.strip().lower()]}"'
        )
    fields = len(text.split())
    if fields != _FIELDS:
        remedy = f"write {_FORM}" if fields != _FIELDS + 1 else f"write {_FORM}; for seconds, use spacing="
        raise DeclarationError(where, f"cron={text!r} has {fields} fields, not {_FIELDS}", remedy)
    line = CronLine(" ".join(text.split()), zone)
    problem = _problem(line)
    if problem == _NO_DAY and _problem(_in_any_month(line)) is None:
        problem = _NEVER  # CronSim says the same of a day that no month has, and of one that this month lacks
    if problem == _NEVER:
        raise DeclarationError(where, f"cron={text!r} {problem}", "name a day that exists, or leave out the task")
    if problem is not None:
        raise DeclarationError(where, f"cron={text!r} {problem}", f"write {_FORM}")
    return line


def _problem(line: CronLine) -> str | None:
    """Return what is wrong with a line, as the rest of a sentence; None if it is due at some time."""
    try:
        return _NEVER if line.after(0.0) == float("inf") else None
    except (CronSimError, AssertionError, TypeError, ValueError) as error:
        text = str(error)
        return f"has an invalid {text.removeprefix('Bad ')}" if text.startswith("Bad ") else "is malformed"


def _in_any_month(line: CronLine) -> CronLine:
    minute, hour, day, _, weekday = line.text.split()
    return CronLine(f"{minute} {hour} {day} * {weekday}", line.zone)


def _zone(where: str, timezone: object) -> tzinfo:
    if isinstance(timezone, tzinfo):
        return timezone
    if timezone == "UTC":
        return UTC  # no host lacks it
    try:
        return ZoneInfo(str(timezone))
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        problem = f"timezone={timezone!r} is not a time zone that this host knows"
        remedy = 'give a name such as "Europe/Berlin"; if the host has no time zones, install the package tzdata'
        raise DeclarationError(where, problem, remedy) from None
