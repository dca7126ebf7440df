"""HTML from templates. All variables are escaped."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from novasvc._version import __version__
from novasvc.api.page.assets import Assets

_WIDTH, _HEIGHT, _EDGE = 120, 24, 2.0
"""Size and margin of a sparkline, in units of its viewBox."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TWICE = 2
"""A unit is used for up to twice the next larger unit: 119 min, then 2 h."""


def span(seconds: float | None) -> str:
    """Format a length of time: "4 s", "90 s", "3 min", "2 h", "5 d"; time.js has the same rule."""
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
    """Format a duration: "340 µs", "3.2 ms", "1.50 s"."""
    if seconds is None:
        return "–"  # noqa: RUF001 - a dash
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < _TWICE * _MINUTE else span(seconds)
    if seconds >= 0.001:  # noqa: PLR2004
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds * 1_000_000:.0f} µs"


def _format(seconds: float, pattern: str) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime(pattern)
    except (ValueError, OverflowError, OSError):  # out of range: a wrong clock
        return "?"


def iso(seconds: float) -> str:
    """Format a time in ISO 8601, in UTC."""
    return _format(seconds, "%Y-%m-%dT%H:%M:%SZ")


def clock_time(seconds: float) -> str:
    """Format the time of day, in UTC."""
    return _format(seconds, "%H:%M:%S")


def sparkline(values: Sequence[float | None], label: str) -> Markup:
    """Draw values, the newest at the right, with a gap for None.

    :param label: describes it, for screen readers.
    """
    known = [value for value in values if value is not None]
    highest = max(known, default=0.0) or 1.0
    step = _WIDTH / max(1, len(values) - 1)
    lines: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            lines.append([])
            continue
        y = _HEIGHT - _EDGE - value / highest * (_HEIGHT - 2 * _EDGE)
        lines[-1].append(f"{number * step:.1f} {y:.1f}")
    drawn = "".join(
        # A single point is a line of length 0, which round line caps make a dot.
        f"M{line[0]}L{' '.join(line[1:] or line[:1])}"
        for line in lines
        if line
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<path d="{}"/></svg>'
    ).format(_WIDTH, _HEIGHT, label, drawn)


class Renderer:
    """Fills templates.

    :param assets: static files, whose URLs templates use.
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

    def text(self, template: str, **names: Any) -> str:
        """Fill a template."""
        return self._environment.get_template(template).render(names)
