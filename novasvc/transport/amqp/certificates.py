"""TLS to the broker: CA bundle, client certificate, verification of the host name, reasons for a refusal.

Imports OpenSSL, which costs a node memory, so it is imported only when TLS is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    extract_patterns,
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from service_identity.hazmat import DNSPattern, IPAddressPattern
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from novasvc.config.errors import SettingError
from novasvc.transport.amqp.options import BrokerOptions

OnRejected = Callable[[str], object]
"""Called with the reason why a certificate is rejected; OpenSSL's own error only says that it is."""

_ORIGIN = "the TLS settings of the broker"
_EXPIRED = 10
_UNTRUSTED = "its certificate is signed by an unknown authority; set rabbit_ssl_ca_file to the authority's certificate"
_PROBLEMS = {
    2: _UNTRUSTED,
    9: "its certificate is not valid yet; check the clocks of both hosts",
    18: "its certificate is self-signed; to trust it, set rabbit_ssl_ca_file to it",
    19: _UNTRUSTED,
    20: _UNTRUSTED,
    21: _UNTRUSTED,
    23: "its certificate has been revoked",
}
"""Reasons by OpenSSL's verification error (X509_V_ERR_*)."""


# Note [Host name verification]
#
# Twisted's optionsForClientTLS verifies the host name in OpenSSL's verify callback, and a context has
# one such callback. Setting another one, to learn why a certificate is rejected, would switch that
# verification off. So the callback here does both, with service-identity, and the tests include a
# broker with another host's certificate.


@implementer(IOpenSSLClientConnectionCreator)
@attrs.frozen(eq=False)
class ConnectionCreator:
    """Creates TLS connections to one host, with verification of its certificate.

    :param host: name or IP address. A name is sent as SNI; the certificate has to be valid for either.
    :param context: with the CA bundle and the client certificate.
    :param on_rejected: called with the reason if the certificate is rejected.
    """

    _host: str
    _context: SSL.Context
    _on_rejected: OnRejected

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803 - the interface's names
        """Create a connection; see IOpenSSLClientConnectionCreator."""
        connection = SSL.Connection(self._context, None)
        if not self._is_address():
            connection.set_tlsext_host_name(self._host.encode("idna"))
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)
        return connection

    def _is_address(self) -> bool:
        return isIPAddress(self._host) or isIPv6Address(self._host)

    def _verify(self, _connection: SSL.Connection, x509: X509, number: int, depth: int, accepted: int) -> bool:
        """Return whether a certificate is accepted; called for each one of the chain, the host's own (depth 0) last."""
        certificate = x509.to_cryptography()
        problem = None
        if not accepted:
            problem = _rejection_reason(number, certificate)
        elif depth == 0:
            problem = self._name_mismatch(certificate)
        if problem is not None:
            self._on_rejected(problem)
        return problem is None

    def _name_mismatch(self, certificate: Certificate) -> str | None:
        try:
            if self._is_address():
                verify_certificate_ip_address(certificate, self._host)
            else:
                verify_certificate_hostname(certificate, self._host.encode("idna").decode("ascii"))
        except (VerificationError, CertificateError, ValueError):
            return f"its certificate is for {_names(certificate)}, not for {self._host}"
        return None


def _rejection_reason(number: int, certificate: Certificate) -> str:
    if number == _EXPIRED:
        return f"its certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return _PROBLEMS.get(number, f"its certificate was rejected (X.509 error {number})")


def _names(certificate: Certificate) -> str:
    try:
        patterns = extract_patterns(certificate)
    except (CertificateError, ValueError):
        return "unreadable names"
    names = [
        pattern.pattern.decode() if isinstance(pattern, DNSPattern) else str(pattern.pattern)
        for pattern in patterns
        if isinstance(pattern, DNSPattern | IPAddressPattern)
    ]
    return ", ".join(names) or "no name"


def connection_creator(host: str, options: BrokerOptions, on_rejected: OnRejected) -> ConnectionCreator:
    """Return a creator of TLS connections to a host, with TLS 1.2 or later.

    The files are read on each call, so that renewed certificates are used without a restart.

    :param on_rejected: called with the reason if the host's certificate is rejected.
    :raises SettingError: a file cannot be read or used.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    if options.ssl_ca_file is None:
        context.set_default_verify_paths()
    else:
        problem = "it contains no readable PEM certificate"
        _load("rabbit_ssl_ca_file", options.ssl_ca_file, context.load_verify_locations, problem)
    certificate, key = options.ssl_cert_file, options.ssl_key_file
    if certificate is not None and key is not None:
        problem = "it contains no readable PEM certificate"
        _load("rabbit_ssl_cert_file", certificate, context.use_certificate_chain_file, problem)
        problem = f"it contains no unencrypted PEM private key, or not the key of {certificate}"

        def use_key(path: str) -> None:
            # Not by use_privatekey_file: OpenSSL would ask for a passphrase on the terminal.
            key: Any = load_pem_private_key(Path(path).read_bytes(), None)
            context.use_privatekey(key)
            context.check_privatekey()

        _load("rabbit_ssl_key_file", key, use_key, problem)
    return ConnectionCreator(host, context, on_rejected)


def _load(setting: str, path: Path, use: Callable[[str], object], problem: str) -> None:
    try:
        path.open("rb").close()
        use(str(path))
    except OSError as error:
        remedy = "give the path of a file that this user may read"
        raise SettingError(setting, str(path), _ORIGIN, f"it cannot be read: {error.strerror}", remedy) from error
    except (SSL.Error, TypeError, ValueError):
        raise SettingError(setting, str(path), _ORIGIN, problem, "give the right file") from None
