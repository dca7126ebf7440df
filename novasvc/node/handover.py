"""Servers take the place of others in the same process, and none of their addresses is closed meanwhile."""

from collections.abc import Iterable
from socket import socket
from typing import Any

from twisted.application.service import IService

from novasvc.interfaces import IReplaceable


def hand_over(before: Iterable[IService], after: Iterable[IService]) -> list[IService]:
    """Have servers that are to start listen already, on the sockets of those whose place they take where they can.

    Servers that are in both, and those that are not :class:`~novasvc.interfaces.IReplaceable`, take no part.

    :param before: serve on until they are stopped.
    :param after: take up sockets, and answer when they are started.
    :return: those of before that may be stopped when the others run.
    :raises NovasvcError: an address cannot be had; nothing has changed then.
    """
    before, after = list(before), list(after)
    leaving: list[Any] = [server for server in before if server not in after and _is_replaceable(server)]
    coming: list[Any] = [server for server in after if server not in before and _is_replaceable(server)]
    copies = [(server, copy) for server in leaving for copy in server.duplicate_sockets()]
    taken: list[socket] = []
    opened: list[tuple[Any, list[socket]]] = []
    names = {server.name for server in leaving}
    try:
        # A server of port 0 is content with any: so those first that have had one.
        for server in sorted(coming, key=lambda server: server.name not in names):
            # Its namesake's come first, for the same reason.
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
