"""Times of events as text."""

from datetime import UTC, datetime


def iso_time(seconds: float) -> str:
    """Format a time in ISO 8601, in UTC: "2026-11-23T02:03:04.567+00:00".

    :param seconds: since the epoch. If they are out of datetime's range, as the host's clock was wrong, they are
        shown as they are.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds!r} s"
