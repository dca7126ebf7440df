"""How a page becomes HTML. Everything that is not ours is escaped."""

from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from novasvc._version import __version__
from novasvc.api.page.assets import Assets
from novasvc.api.page.spark import sparkline

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TWICE = 2
"""Units are too small when there are more than twice as many as make the next one."""


def span(seconds: float | None) -> str:
    """Write a length of time for people: "4 s", "90 s", "3 min", "2 h", "5 d"; live.js has the same."""
    if seconds is None:
        return "?"
    seconds = max(0.0, seconds)
    if seconds < _TWICE * _MINUTE:
        return f"{int(seconds)} s"
    if seconds < _TWICE * _HOUR:
        return f"{int(seconds / _MINUTE)} min"
    if seconds < _TWICE * _DAY:
        return f"{int(seconds / _HOUR)} h"
    return f"{int(seconds / _DAY)} d"


def duration(seconds: float | None) -> str:
    """Write how long something took: "340 µs", "3.2 ms", "1.50 s"."""
    if seconds is None:
        return "–"  # noqa: RUF001 - a dash
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < _TWICE * _MINUTE else span(seconds)
    if seconds >= 0.001:  # noqa: PLR2004
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds * 1_000_000:.0f} µs"


def _moment(seconds: float, form: str) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):  # of a clock that is out of its mind
        return "?"


def iso(seconds: float) -> str:
    """Write a moment for programs."""
    return _moment(seconds, "%Y-%m-%dT%H:%M:%SZ")


def clock_time(seconds: float) -> str:
    """Write a moment of today for people, in UTC."""
    return _moment(seconds, "%H:%M:%S")


class Renderer:
    """Fills templates.

    :param assets: for their addresses.
    """

    def __init__(self, assets: Assets) -> None:
        self._environment = Environment(
            loader=PackageLoader("novasvc.api.page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "span": span,
            "duration": duration,
            "iso": iso,
            "clock_time": clock_time,
            "thousands": "{:,}".format,
        }
        self._environment.globals |= {"asset": assets.url, "version": __version__, "sparkline": sparkline}

    def page(self, request: Any, template: str, status: int = 200, **names: Any) -> bytes:
        """Return a page, and set the answer's status and type."""
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        return self.text(template, **names).encode("utf-8", "replace")

    def text(self, template: str, **names: Any) -> str:
        """Return a template, filled."""
        return self._environment.get_template(template).render(names)
