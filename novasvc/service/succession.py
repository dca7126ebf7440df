"""Servers take the place of others in the same process, and none of their addresses is closed meanwhile."""

from collections.abc import Iterable
from socket import socket

from twisted.application.service import IService

from novasvc.interfaces import IPreforkable, IReplaceable


def hand_over(before: Iterable[IService], after: Iterable[IService]) -> None:
    """Have servers that are to start listen already, on the sockets of those whose place they take where they can.

    :param before: serve on until they are stopped; those that are :class:`~novasvc.interfaces.IReplaceable` take part.
    :param after: take up sockets, and answer when they are started.
    :raises NovasvcError: an address cannot be had; nobody has taken up anything then.
    """
    held = [copy for server in before if IReplaceable.providedBy(server) for copy in server.hand_on()]
    taken: list[tuple[IPreforkable, list[socket]]] = []
    try:
        for server in after:
            if IReplaceable.providedBy(server):
                taken.append((server, [*server.open_sockets([each for each in held if not _is_in(each, taken)])]))
    except BaseException:
        for _, opened in taken:
            _close(opened)
        _close(held)
        raise
    for each, opened in taken:
        each.adopt_sockets(opened)
    _close(copy for copy in held if not _is_in(copy, taken))


def _is_in(one: socket, taken: Iterable[tuple[IPreforkable, list[socket]]]) -> bool:
    return any(one is each for _, opened in taken for each in opened)


def _close(sockets: Iterable[socket]) -> None:
    for each in sockets:
        each.close()
