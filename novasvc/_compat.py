"""Every use of a private part of another package, one function each; tests/unit/test_compat.py holds them to it.

A function says whose private part it uses, why there is no public way, and which versions it was checked with.
"""

import atexit
import json
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner

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


def http_channel(protocol: Any) -> Any | None:
    """Return the HTTPChannel that serves a connection, or None if the protocol is not twisted.web's HTTP/1.

    twisted.web's ``Site`` builds a protocol that chooses between HTTP/1 and HTTP/2 when data arrives, and does not say
    which channel it chose.

    Private: ``twisted.web.http._GenericHTTPChannelProtocol._channel``. Checked with Twisted 25.5 and 26.10.
    """
    web = sys.modules.get("twisted.web.http")  # if nobody has imported it, no protocol is its channel
    channel = getattr(protocol, "_channel", protocol)
    return channel if web is not None and isinstance(channel, web.HTTPChannel) else None


# -- twisted.internet ------------------------------------------------------------------------------


def buffered_octets(transport: Any) -> int | None:
    """Return how many octets a transport holds that the kernel has not accepted; None if it does not tell.

    Transports tell their producers when the buffer is full and when it is empty, and nothing in between. A transport
    that wraps another, such as TLS, passes its data on at once: the buffer is that of the innermost transport.

    Private: ``twisted.internet.abstract.FileDescriptor._tempDataLen``, beside its undocumented ``dataBuffer`` and
    ``offset``. Checked with Twisted 25.5 and 26.10.
    """
    while not hasattr(transport, "dataBuffer") and hasattr(transport, "transport"):
        transport = transport.transport
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


# -- twisted.logger --------------------------------------------------------------------------------


def is_log_begun() -> bool:
    """Return whether logging has begun in this process.

    ``beginLoggingTo`` warns when it is called a second time, and there is no public way to ask before.

    Private: ``twisted.logger.LogBeginner._temporaryObserver``. Checked with Twisted 25.5 and 26.10.
    """
    return globalLogBeginner._temporaryObserver is None  # noqa: SLF001


# -- alchimia --------------------------------------------------------------------------------------


def import_alchimia() -> tuple[Any, Callable[..., Deferred[Any]]]:
    """Import alchimia under SQLAlchemy 2; return TwistedEngine, and the function that runs work in a thread.

    alchimia's last release is of 2018. Its import subclasses ``DefaultEngineStrategy``, which SQLAlchemy 2 removed, and
    never uses the subclass: an empty class takes its place. Its public methods take a thread per connection and never
    return it, wait without a bound, and partly call what SQLAlchemy 2 removed.

    :return: the class, and ``defer_to_worker(deliver, worker, work, *args, **kwargs)``: a Deferred of the result of
        ``work``, called by ``worker.do`` in a thread; ``deliver`` takes the result to the reactor's thread.

    Private: ``alchimia.engine._defer_to_worker``, ``sqlalchemy.engine.strategies``. Checked with alchimia 0.8.1 and
    SQLAlchemy 2.1.
    """
    from sqlalchemy.engine import strategies  # noqa: PLC0415 - only a process with a database has it

    strategies.DefaultEngineStrategy = type("DefaultEngineStrategy", (), {})  # type: ignore[attr-defined]
    from alchimia.engine import TwistedEngine, _defer_to_worker  # noqa: PLC0415

    return TwistedEngine, _defer_to_worker


# -- the standard library --------------------------------------------------------------------------


def json_encoder(encoder: json.JSONEncoder) -> Callable[[Any, int], tuple[str, ...]] | None:
    """Return the C function behind an encoder; None in a Python without the json module's C accelerator.

    ``JSONEncoder.encode`` makes such a function for each value, which costs more than encoding a small value with it.
    This one does not check for circular references, and raises RecursionError for them.

    :param encoder: one that makes compact ASCII text.
    :return: takes a value, and the indentation 0; returns the parts of its JSON text.

    Private: ``json.encoder.c_make_encoder`` and its parameters. Checked with Python 3.11, 3.12 and 3.13.
    """
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return None
    quote = json.encoder.encode_basestring_ascii
    separators = encoder.key_separator, encoder.item_separator
    flags = encoder.sort_keys, encoder.skipkeys, encoder.allow_nan
    encode: Callable[[Any, int], tuple[str, ...]] = make(None, encoder.default, quote, None, *separators, *flags)
    return encode


def json_scanner() -> Callable[[str, int], tuple[Any, int]]:
    """Return the function behind ``JSONDecoder.raw_decode``, which adds a call and accepts no index by its documents.

    :return: takes a text and an index; returns the JSON value at the index, and the index after it. Raises
        StopIteration if no value begins there, ValueError if it is not JSON.

    Private: ``json.JSONDecoder.scan_once``. Checked with Python 3.11, 3.12 and 3.13.
    """
    scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
    return scan


def interpreter_options() -> list[str]:
    """Return the options that this interpreter was started with, such as -W, -X and -O, for a child process.

    Only multiprocessing passes them on, and only to processes of its own.

    Private: ``subprocess._args_from_interpreter_flags``. Checked with Python 3.11, 3.12 and 3.13.
    """
    import subprocess  # noqa: PLC0415 - workers do not need it

    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return options


def run_exit_functions() -> None:
    """Call what was registered with atexit, as an interpreter does that ends by itself.

    For a forked process that leaves by ``os._exit``, as it must not unwind the stack of its parent.

    Private: ``atexit._run_exitfuncs``. Checked with Python 3.11, 3.12 and 3.13.
    """
    atexit._run_exitfuncs()  # noqa: SLF001
