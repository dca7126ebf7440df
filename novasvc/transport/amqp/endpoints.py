"""Endpoints of the broker's hosts, with or without TLS, and explanations of failed connections."""

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from novasvc.config.transport_url import BrokerAddress
from novasvc.transport.amqp.options import BrokerOptions

_TLS_FAILURE = "OpenSSL.SSL.Error"
_NO_TLS = frozenset({"wrong version number", "packet length too long", "http request", "record layer failure"})
_ALERTS = {
    "certificate required": "it requires a client certificate; set rabbit_ssl_cert_file and rabbit_ssl_key_file",
    "unknown ca": "it does not trust the authority that signed rabbit_ssl_cert_file",
    "certificate expired": "it rejects the certificate in rabbit_ssl_cert_file as expired",
    "bad certificate": "it rejects the certificate in rabbit_ssl_cert_file",
    "handshake failure": "there is no TLS version or cipher in common, or it requires a client certificate",
    "protocol version": "it does not support TLS 1.2 or later",
}
"""TLS alerts of the broker, by the end of OpenSSL's reason text."""


def endpoint(
    reactor: Any,
    host: str,
    port: int,
    *,
    tls: bool,
    options: BrokerOptions,
    on_rejected: Callable[[str], object],
) -> IStreamClientEndpoint:
    """Return a client endpoint for a host.

    :param on_rejected: called with the reason if the host's certificate is rejected.
    :raises SettingError: a TLS file cannot be used.
    """
    plain = HostnameEndpoint(reactor, host, port, timeout=options.connect_timeout)
    if not tls:
        return plain
    from novasvc.transport.amqp.certificates import connection_creator  # noqa: PLC0415 - imports OpenSSL

    return wrapClientTLS(connection_creator(host, options, on_rejected), plain)


def check_tls_files(address: BrokerAddress, options: BrokerOptions) -> None:
    """Check that the TLS files can be used, if the address uses TLS.

    :raises SettingError: a file cannot be used.
    """
    if address.tls:
        from novasvc.transport.amqp.certificates import connection_creator  # noqa: PLC0415 - imports OpenSSL

        connection_creator("", options, lambda _: None)


def is_tls_failure(failure: Failure) -> bool:
    """Return whether TLS failed, so that the host was reached."""
    return bool(failure.check(_TLS_FAILURE))


def failure_reason(failure: Failure) -> str:
    """Return in one line why a connection failed, and what the operator can do."""
    if is_tls_failure(failure):
        return _tls_failure_reason(cast(BaseException, failure.value))
    return (failure.getErrorMessage() or type(failure.value).__name__).rstrip(".")


def _tls_failure_reason(error: BaseException) -> str:
    """Explain OpenSSL's error queue: tuples of library, function and reason."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [str(entry[-1]).lower() for entry in queue if entry]
    if any(reason in _NO_TLS for reason in reasons):
        return "the port does not speak TLS; use amqp://, or the broker's TLS port"
    for reason in reasons:
        for end, text in _ALERTS.items():
            if reason.endswith(end):
                return text
    return f"TLS failed: {', '.join(reasons) or 'the connection was closed during the handshake'}"
