"""What is wrong in a node although it sends heartbeats: found in its description, for the page of the fleet."""

from collections.abc import Mapping, Sequence
from typing import Any

from novasvc.listing import shorten

_RUNNING = {"ready", "starting", "draining"}
"""States of workers that are as they should be; see :meth:`novasvc.interfaces.ISupervisor.workers`."""
LONGEST = 400
"""Characters of a text: errors end with what to do."""


def find_troubles(
    description: Mapping[str, Any], workers: Sequence[Mapping[str, Any]], silent: Sequence[int]
) -> list[dict[str, Any]]:
    """Return what is wrong.

    :param description: see :meth:`novasvc.node.endpoint.NodeAPI.describe`.
    :param workers: as ISupervisor.workers has them.
    :param silent: numbers of workers that do not answer.
    :return: [{"title": what is wrong, "why": details, "since": ISO 8601 in UTC or None}].
    """
    found = []
    for worker in workers:
        if worker["state"] not in _RUNNING or (worker["state"] == "starting" and worker["trouble"]):
            title = "worker hangs" if worker["state"] == "hung" else "worker crashes"
            restarts = f", {worker['restarts']} restarts" if worker["restarts"] else ""
            why = (
                f"worker {worker['number']} is {worker['state']}{restarts}: {worker['trouble'] or 'no reason is known'}"
            )
            found.append(_trouble(title, why, worker["since"]))
    found += [_trouble("worker does not answer", f"worker {number}", None) for number in silent]
    found += [
        _trouble("not ready", f"{check['name']}: {check['detail']}", check["since"])
        for check in description["health"]
        if not check["ready"]
    ]
    if description["quarantined"]:
        number = description["quarantined"]
        messages = "1 message" if number == 1 else f"{number:,} messages"
        found.append(_trouble("messages quarantined", f"{messages} in the last 30 min", None))
    return found


def _trouble(title: str, why: str, since: str | None) -> dict[str, Any]:
    return {"title": title, "why": shorten(why, LONGEST), "since": since}
