"""What is under way in a fleet, in words."""

from collections.abc import Iterable, Mapping
from typing import Any

from novasvc import rpc
from novasvc.telemetry.logs import pluralize
from novasvc.testing.node import FleetNode
from novasvc.testing.transport import Network


def work_under_way(nodes: Iterable[FleetNode[Any]], clients: Mapping[str, rpc.Client], network: Network) -> list[str]:
    """Return one sentence for each piece of work."""
    work = [f"{message} (delayed by a fault)" for message in network.delayed.values()]
    running = 0
    for node in nodes:
        place = f"{node.topic} at {node.host}"
        service = node.service
        if service.state in {"starting", "draining"}:
            waiting = f", waiting for the {service.waiting_for}" if service.waiting_for else ""
            work.append(f"{place} is {service.state}{waiting}")
        calls = service.running_calls()
        running += len(calls)
        work += [f"{call['method']!r} of {place} runs for {call['seconds']:g} s" for call in calls]
        work += [f"the task {name!r} of {place} runs" for name, task in node.tasks.items() if task.running]
        if service.node.client is not None:
            work += _calls(node.host, service.node.client, network)
    for host, client in clients.items():
        work += _calls(host, client, network)
    unsettled = sum(transport.unsettled for transport in network.transports)
    if unsettled > running:
        work.append(f"{pluralize(unsettled - running, 'message')} delivered and not settled")
    if network.broker.is_delivering:
        work.append("the broker delivers what was just sent")
    return work


def _calls(host: str, client: rpc.Client, network: Network) -> list[str]:
    """Return the calls of a client that wait for replies."""
    if not client.pending:
        return []
    ids = client.request_ids_in_flight()
    sent = [
        str(message)
        for message in network.traffic
        if message.kind == "call" and message.sender == host and message.context.request_id in ids
    ]
    waiting = sent[-client.pending :] or [pluralize(client.pending, "call") + f" of {host}"]
    return [f"{message}, without a reply" for message in waiting]
