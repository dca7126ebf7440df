"""TLS of a server: its certificate, and client certificates. Imports OpenSSL: import it only when TLS is used."""

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLContextFactory, IProtocolFactory
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from novasvc.config.errors import SettingError
from novasvc.interfaces import ISpecification, ISpecified

_log = Logger()

_NO_CERTIFICATE = "it contains no PEM certificate"
_HTTP = b"http/1.1"


@implementer(IOpenSSLContextFactory, ISpecified)
class TLS:
    """The OpenSSL context of a server's connections.

    Workers get the contents of the files, which are read once for all of them: a worker that replaces another has the
    same certificate, even if the file has changed.

    :param certificate: PEM; intermediate certificates may follow it.
    :param key: PEM, without a passphrase.
    :param authorities: PEM: the CA bundle that verifies clients, which then need a certificate; None asks for none.
    """

    def __init__(self, certificate: "Pem", key: "Pem", authorities: "Pem | None") -> None:
        self._read = certificate, key, authorities
        self._context = context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_RENEGOTIATION)
        context.set_alpn_select_callback(_select)
        with certificate.used(_NO_CERTIFICATE):
            own, *chain = load_pem_x509_certificates(certificate.text)
            context.use_certificate(own)
            for each in chain:
                context.add_extra_chain_cert(each)
        with key.used(f"it contains no PEM private key without a passphrase, or not the key of {certificate.path}"):
            # OpenSSL's own loader would prompt for a passphrase on the terminal.
            private: Any = load_pem_private_key(key.text, None)
            context.use_privatekey(private)
            context.check_privatekey()
        if authorities is not None:
            with authorities.used(_NO_CERTIFICATE):
                store = context.get_cert_store()
                assert store is not None
                for each in load_pem_x509_certificates(authorities.text):
                    store.add_cert(X509.from_cryptography(each))
                    context.add_client_ca(each)
            context.set_session_id(b"novasvc")  # without it, resuming a session with a client certificate fails
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)

    def specification(self) -> "TLSSpecification":
        """Return what a worker makes its context of; see :class:`~novasvc.interfaces.ISpecified`."""
        return TLSSpecification(*self._read)

    def getContext(self) -> SSL.Context:  # noqa: N802 - the interface's name
        """Return the context; see IOpenSSLContextFactory."""
        return self._context


@implementer(ISpecification)
@attrs.frozen
class TLSSpecification:
    """A :class:`TLS` as the contents of its files."""

    certificate: "Pem"
    key: "Pem"
    authorities: "Pem | None"

    def build(self, reactor: Any) -> TLS:
        """Make the context; see :class:`~novasvc.interfaces.ISpecification`."""
        return TLS(self.certificate, self.key, self.authorities)


@attrs.frozen
class Pem:
    """The contents of a PEM file.

    :param setting: the setting that names the file.
    :param text: the contents; maybe a private key, so it is not in the repr.
    """

    setting: str
    path: Path
    text: bytes = attrs.field(repr=False)

    @contextmanager
    def used(self, problem: str) -> Iterator[None]:
        """Convert errors about the contents to a SettingError that names the file.

        :raises SettingError: with this problem.
        """
        try:
            yield
        except (SSL.Error, TypeError, ValueError):
            given = repr(str(self.path))
            raise SettingError(self.setting, given, "the settings", problem, "give the right file") from None


def make_tls(cert_file: Path | None, key_file: Path | None, ca_file: Path | None) -> TLS:
    """Read a certificate and its key. TLS 1.2 is the minimum version.

    The files are those of :class:`TLS`.

    :raises SettingError: a file cannot be used; the error names the setting and the file.
    """
    if cert_file is None or key_file is None:
        name = "ssl_cert_file" if cert_file is None else "ssl_key_file"
        raise SettingError(name, None, "nowhere", "TLS needs a certificate and its key", f"set {name}")
    authorities = None if ca_file is None else _read("ssl_ca_file", ca_file)
    tls = TLS(_read("ssl_cert_file", cert_file), _read("ssl_key_file", key_file), authorities)
    if key_file.stat().st_mode & stat.S_IROTH:
        _log.warn("ssl_key_file {path} is readable by all users of this host; chmod 600 it", path=str(key_file))
    return tls


def wrap(factory: IProtocolFactory, context: TLS, reactor: Any) -> IProtocolFactory:
    """Wrap a factory so that its protocols use TLS on any transport."""
    return TLSMemoryBIOFactory(context, isClient=False, wrappedFactory=factory, clock=reactor)


def _select(_connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """Select HTTP/1.1 by ALPN: twisted.web's HTTP/2 does not enforce our limits."""
    return _HTTP if _HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _read(setting: str, path: Path) -> Pem:
    try:
        return Pem(setting, path, path.read_bytes())
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        remedy = "give the path of a file that this user may read"
        raise SettingError(setting, repr(str(path)), "the settings", problem, remedy) from error
