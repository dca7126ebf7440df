"""Hands sockets from servers to their replacements in the same process, so that no address is closed meanwhile."""

from collections.abc import Iterable
from socket import socket
from typing import Any

from twisted.application.service import IService

from novasvc.interfaces import IReplaceable


def hand_over_sockets(before: Iterable[IService], after: Iterable[IService]) -> list[IService]:
    """Open the sockets of servers that will start, reusing those of the servers they replace.

    Servers that are in both lists, or not :class:`~novasvc.interfaces.IReplaceable`, are left alone.

    :param before: serve until they are stopped.
    :param after: get their sockets now, and accept when they are started.
    :return: the servers of ``before`` that may be stopped once those of ``after`` run.
    :raises NovasvcError: an address cannot be bound; nothing has changed then.
    """
    before, after = list(before), list(after)
    leaving: list[Any] = [server for server in before if server not in after and _is_replaceable(server)]
    coming: list[Any] = [server for server in after if server not in before and _is_replaceable(server)]
    copies = [(server, copy) for server in leaving for copy in server.duplicate_sockets()]
    taken: list[socket] = []
    opened: list[tuple[Any, list[socket]]] = []
    names = {server.name for server in leaving}
    try:
        # A server of port 0 takes any socket, so servers that have a predecessor choose first.
        for server in sorted(coming, key=lambda server: server.name not in names):
            # The predecessor's own sockets come first, for the same reason.
            free = [(other.name != server.name, copy) for other, copy in copies if not _is_in(copy, taken)]
            held = [copy for _, copy in sorted(free, key=lambda each: each[0])]
            sockets = [*server.open_sockets(held)]
            opened.append((server, sockets))
            taken += sockets
    except BaseException:
        _close([*taken, *(copy for _, copy in copies)])
        raise
    for server, sockets in opened:
        server.adopt_sockets(sockets)
    for server, copy in copies:
        if _is_in(copy, taken):
            server.superseded()
        else:
            copy.close()
    return leaving


def _is_replaceable(server: Any) -> bool:
    return IReplaceable.providedBy(server) and server.replaceable


def _is_in(one: socket, sockets: Iterable[socket]) -> bool:
    return any(one is each for each in sockets)


def _close(sockets: Iterable[socket]) -> None:
    for each in sockets:
        each.close()
