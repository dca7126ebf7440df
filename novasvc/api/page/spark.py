"""Small pictures of how something went, drawn here: SVG of a line, without axes."""

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 120, 24
_EDGE = 2.0


def sparkline(values: Sequence[float | None], label: str) -> Markup:
    """Draw values, the newest at the right; there is a gap where one is None.

    :param label: what it shows, for who does not see it.
    """
    known = [value for value in values if value is not None]
    highest = max(known, default=0.0) or 1.0
    step = WIDTH / max(1, len(values) - 1)
    lines: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            lines.append([])
            continue
        y = HEIGHT - _EDGE - value / highest * (HEIGHT - 2 * _EDGE)
        lines[-1].append(f"{number * step:.1f} {y:.1f}")
    drawn = "".join(
        # A single point is a line without a length, which round ends make a dot.
        f"M{line[0]}L{' '.join(line[1:] or line[:1])}"
        for line in lines
        if line
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<path d="{}"/></svg>'
    ).format(WIDTH, HEIGHT, label, drawn)
