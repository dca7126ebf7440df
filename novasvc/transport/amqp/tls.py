"""The way to one host, with or without TLS, and the reason if it leads nowhere."""

from typing import Any

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.python.failure import Failure

from novasvc.transport.amqp.options import BrokerOptions


def endpoint(reactor: Any, host: str, port: int, tls: bool, options: BrokerOptions, timeout: float) -> Any:  # noqa: FBT001
    """Return the endpoint to connect to."""
    way = HostnameEndpoint(reactor, host, port, timeout=timeout)
    if not tls:
        return way
    from twisted.internet.ssl import (
        Certificate,
        optionsForClientTLS,
        platformTrust,
        trustRootFromCertificates,
    )

    trust: Any = platformTrust()
    if options.ssl_ca_file is not None:
        trust = trustRootFromCertificates([Certificate.loadPEM(options.ssl_ca_file.read_bytes())])
    return wrapClientTLS(optionsForClientTLS(host, trustRoot=trust), way)


def explain(failure: Failure) -> str:
    """Say in one line what kept us from connecting."""
    return failure.getErrorMessage() or type(failure.value).__name__


def is_refusal(failure: Failure) -> bool:
    """Tell whether the host answered, and TLS failed."""
    return bool(failure.check("OpenSSL.SSL.Error", "service_identity.exceptions.VerificationError"))
