"""Client endpoints of the broker's hosts, with or without TLS."""

from collections.abc import Callable
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from novasvc.config.transport_url import BrokerAddress
from novasvc.transport.amqp.options import BrokerOptions


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
