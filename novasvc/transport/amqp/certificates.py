"""Who a broker is, and who we are to it: the files of TLS, the check of names, the reasons of a refusal.

Imports OpenSSL, which costs a node memory; imported when TLS is used.
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

from novasvc.errors import SettingError
from novasvc.transport.amqp.options import BrokerOptions

Notice = Callable[[str], object]
"""Takes the reason for which a certificate is refused; OpenSSL's own error says only that it is."""

_ORIGIN = "the TLS settings of the broker"
_EXPIRED = 10
_UNTRUSTED = "its certificate is signed by none whom we trust; give the authority's as rabbit_ssl_ca_file"
_PROBLEMS = {
    2: _UNTRUSTED,
    9: "its certificate is not valid yet; see to both clocks",
    18: "its certificate is signed by itself; give it as rabbit_ssl_ca_file, if it is to be trusted",
    19: _UNTRUSTED,
    20: _UNTRUSTED,
    21: _UNTRUSTED,
    23: "its certificate was revoked",
}
"""By OpenSSL's numbers of what is wrong with a certificate."""


# Note [Who checks the host's name]
#
# Twisted's optionsForClientTLS checks it, too, in OpenSSL's callback, and there is one callback: whoever sets
# another one to learn why a certificate is refused has switched that check off. So the callback here does both,
# by service-identity, and the tests have a broker with another's certificate.


@implementer(IOpenSSLClientConnectionCreator)
@attrs.frozen(eq=False)
class ConnectionCreator:
    """Begins TLS with one host.

    :param host: its name, which is sent (SNI), or its address; its certificate has to be for it.
    """

    _host: str
    _context: SSL.Context
    _notice: Notice

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803 - the interface's names
        """Make a connection; see IOpenSSLClientConnectionCreator."""
        connection = SSL.Connection(self._context, None)
        if not self._is_address():
            connection.set_tlsext_host_name(self._host.encode("idna"))
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)
        return connection

    def _is_address(self) -> bool:
        return isIPAddress(self._host) or isIPv6Address(self._host)

    def _verify(self, _connection: SSL.Connection, x509: X509, number: int, depth: int, accepted: int) -> bool:
        """Say whether a certificate of the chain is accepted; called for each, the host's own (depth 0) last."""
        certificate = x509.to_cryptography()
        problem = None
        if not accepted:
            problem = _problem(number, certificate)
        elif depth == 0:
            problem = self._misnamed(certificate)
        if problem is not None:
            self._notice(problem)
        return problem is None

    def _misnamed(self, certificate: Certificate) -> str | None:
        try:
            if self._is_address():
                verify_certificate_ip_address(certificate, self._host)
            else:
                verify_certificate_hostname(certificate, self._host.encode("idna").decode("ascii"))
        except (VerificationError, CertificateError, ValueError):
            return f"its certificate is for {_names(certificate)}, and not for {self._host}"
        return None


def _problem(number: int, certificate: Certificate) -> str:
    if number == _EXPIRED:
        return f"its certificate has expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return _PROBLEMS.get(number, f"its certificate is refused (X.509 error {number})")


def _names(certificate: Certificate) -> str:
    try:
        patterns = extract_patterns(certificate)
    except (CertificateError, ValueError):
        return "names that cannot be read"
    names = [
        pattern.pattern.decode() if isinstance(pattern, DNSPattern) else str(pattern.pattern)
        for pattern in patterns
        if isinstance(pattern, DNSPattern | IPAddressPattern)
    ]
    return ", ".join(names) or "nobody"


def connection_creator(host: str, options: BrokerOptions, notice: Notice) -> ConnectionCreator:
    """Make what begins TLS with a host; TLS 1.2 is the least. The files are read each time: certificates are renewed.

    :param notice: called with the reason, if the host's certificate is refused.
    :raises SettingError: a file cannot be used.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    if options.ssl_ca_file is None:
        context.set_default_verify_paths()
    else:
        problem = "it has no certificate in PEM that can be read"
        _use("rabbit_ssl_ca_file", options.ssl_ca_file, context.load_verify_locations, problem)
    certificate, key = options.ssl_cert_file, options.ssl_key_file
    if certificate is not None and key is not None:
        problem = "it has no certificate in PEM that can be read"
        _use("rabbit_ssl_cert_file", certificate, context.use_certificate_chain_file, problem)
        problem = f"it has no private key in PEM without a passphrase, or not that of {certificate}"

        def use_key(path: str) -> None:
            # Not OpenSSL's own way of reading it, which would ask for a passphrase on the terminal.
            key: Any = load_pem_private_key(Path(path).read_bytes(), None)
            context.use_privatekey(key)
            context.check_privatekey()

        _use("rabbit_ssl_key_file", key, use_key, problem)
    return ConnectionCreator(host, context, notice)


def _use(setting: str, path: Path, use: Callable[[str], object], problem: str) -> None:
    try:
        path.open("rb").close()
        use(str(path))
    except OSError as error:
        remedy = "give the path of a file that this user may read"
        raise SettingError(setting, str(path), _ORIGIN, f"it cannot be read: {error.strerror}", remedy) from error
    except (SSL.Error, TypeError, ValueError):
        raise SettingError(setting, str(path), _ORIGIN, problem, "give the right file") from None
