"""Updates of the fleet's page: what has changed since the version that a viewer has."""

from itertools import islice
from typing import Any

import attrs

from novasvc.api.page.fleet_map import CODES, square_title
from novasvc.api.page.overview import Overview
from novasvc.api.page.rendering import Renderer
from novasvc.api.page.view import View
from novasvc.api.watch import Watch

_SHOWN = 30
"""Timeline entries in an update."""

# Note [Updates for viewers]
#
# An update has what changed since the version of the watch that the viewer has. This version is the id of the last
# message, which the browser sends back as Last-Event-ID (HTML Standard, "Server-sent events"). So a viewer that was
# disconnected, or did not read for a while, catches up with one message, and the server keeps no state for it. An id
# with another epoch is of another process, which may be gone: its viewer gets everything, but of the map only the
# squares that are not up. If the page has others that are not up, they have changed, and it loads the map. "layout" and
# "shape" are digests of the list and of the map: if the page has others, it loads these parts again.


def make_update(
    watch: Watch, view: View, overview: Overview, since: int, last_entry: int, renderer: Renderer
) -> dict[str, Any]:
    """Return the update for a viewer. See Note [Updates for viewers].

    :param view: the view that the viewer sees.
    :param since: the version that the viewer has; 0 if it has none.
    :param last_entry: the number of the newest timeline entry that the viewer has.
    :return: JSON: {"id": str, "old": seconds or None, "trouble": str, "totals": {name: int}, "headline": str,
        "wrong": number of problems, "problems": HTML, or None if they are those that the viewer has, "layout": str,
        "cells": [[id, state, disabled, age], ...], "shape": str, "whole": bool, "squares": [[id, class, title], ...],
        "entry": int, "entries": HTML of the new ones, newest first}.
    """
    fresh = [*islice(watch.timeline.after(last_entry), _SHOWN)] if since else []
    headline = overview.headline
    return {
        "id": version_id(watch),
        "old": round(watch.age, 1) if watch.version else None,
        "trouble": watch.trouble,
        "totals": attrs.asdict(watch.totals),
        "headline": headline,
        "wrong": overview.problems.count,
        "problems": overview.html() if overview.changed > since else None,
        "layout": view.layout,
        "cells": [
            [service.record.id, service.state, service.record.disabled, round(watch.age_of(service), 1)]
            for service in view.services
            if service.changed > since
        ],
        "shape": view.shape,
        # A map that another process has drawn may be current: all squares would be most of the page, once more.
        "whole": not since,
        "squares": [
            [service.record.id, CODES[service.look], square_title(service)]
            for service in view.matching
            if (service.turned > since if since else service.look != "up")
        ],
        "entry": watch.timeline.newest,
        "entries": renderer.text("entries.html", entries=fresh) if fresh else "",
    }


def version_id(watch: Watch) -> str:
    """Return the id of the current state."""
    return f"{watch.epoch}-{watch.version}-{watch.timeline.newest}"


def read_id(watch: Watch, text: str) -> tuple[int, int]:
    """Return the version and the newest timeline entry of an id; (0, 0) if it is not one of this watch."""
    epoch, _, rest = text.partition("-")
    version, _, entry = rest.partition("-")
    if epoch != watch.epoch or not all(part.isascii() and part.isdecimal() for part in (version, entry)):
        return 0, 0
    known, newest = int(version[:18]), int(entry[:18])
    return (known, newest) if known <= watch.version else (0, 0)
