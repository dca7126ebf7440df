"""Every use of a private part of another package, one function each; tests/unit/test_compat.py holds them to it.

A function says whose private part it uses, why there is no public way, and which versions it was checked with.
"""

from typing import Any

# -- twisted.web -----------------------------------------------------------------------------------


def set_request_in_progress(channel: Any, *, in_progress: bool) -> None:
    """Tell an HTTPChannel whether a request is being answered.

    While one is, ``HTTPChannel.pauseProducing`` pauses the response only, and not the reading of the connection, so
    that the end of the connection is noticed. Only ``HTTPChannel.allContentReceived`` sets this, which parses requests
    in twisted.web's own way.

    Private: ``twisted.web.http.HTTPChannel._handlingRequest``. Checked with Twisted 25.5 and 26.10.
    """
    channel._handlingRequest = in_progress  # noqa: SLF001


def apply_content_encoding(request: Any, resource: Any) -> None:
    """Compress the response if the resource is an ``EncodingResourceWrapper``, as ``server.Request.process`` does.

    Private: ``twisted.web.resource._IEncodingResource``, ``twisted.web.server.Request._encoder``. Checked with Twisted
    25.5 and 26.10.
    """
    from twisted.web.resource import _IEncodingResource  # noqa: PLC0415 - only a process that serves HTTP has it

    if _IEncodingResource.providedBy(resource):
        encoder = resource.getEncoder(request)
        if encoder is not None:
            request._encoder = encoder  # noqa: SLF001


# -- twisted.internet ------------------------------------------------------------------------------


def buffered_octets(transport: Any) -> int | None:
    """Return how many octets a transport holds that the kernel has not accepted; None if it is no FileDescriptor.

    Transports tell their producers when the buffer is full and when it is empty, and nothing in between.

    Private: ``twisted.internet.abstract.FileDescriptor._tempDataLen``, beside its undocumented ``dataBuffer`` and
    ``offset``. Checked with Twisted 25.5 and 26.10.
    """
    if not hasattr(transport, "_tempDataLen"):
        return None
    return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)  # noqa: SLF001


# -- automat ---------------------------------------------------------------------------------------


def machine_state(machine: Any) -> str:
    """Return the name of the state that a machine of Automat's ``TypeMachineBuilder`` is in.

    An input that returned it could not be given while another input is handled, but that is when it is asked for.

    Private: ``automat._typed.InputImplementer.__automat_transitioner__``, and its ``_state``. Checked with Automat
    25.4.
    """
    name: str = machine.__automat_transitioner__._state.name  # noqa: SLF001
    return name
