"""TLS for a server: its certificate, and those of its clients. Imports OpenSSL; imported when TLS is used."""

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

from novasvc.errors import SettingError

_log = Logger()

_NO_CERTIFICATE = "there is no certificate in PEM in it"
_HTTP = b"http/1.1"


@implementer(IOpenSSLContextFactory)
class TLS:
    """What the connections of a server have in common.

    Goes to workers by pickle as what was read, once and for all of them: a worker that takes the place of another shows
    the same certificate, whatever has become of the file.

    :param certificate: in PEM; the certificates that lead to its authority may follow it.
    :param key: in PEM, without a passphrase.
    :param authorities: in PEM: those who vouch for clients, which need a certificate then; None asks clients for
        nothing.
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
        with key.used(f"there is no private key in PEM without a passphrase in it, or not that of {certificate.path}"):
            # Not OpenSSL's own way of reading it, which would ask for a passphrase on the terminal.
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
            context.set_session_id(b"novasvc")  # else who comes again with a certificate is refused
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)

    def __reduce__(self) -> tuple[Any, ...]:
        return TLS, self._read

    def getContext(self) -> SSL.Context:  # noqa: N802 - the interface's name
        """Return it; see IOpenSSLContextFactory."""
        return self._context


@attrs.frozen
class Pem:
    """A file that was read.

    :param setting: that names it.
    :param text: what is in it; the private key, maybe.
    """

    setting: str
    path: Path
    text: bytes = attrs.field(repr=False)

    @contextmanager
    def used(self, problem: str) -> Iterator[None]:
        """Say of which file it is that something is wrong.

        :raises SettingError: with this problem.
        """
        try:
            yield
        except (SSL.Error, TypeError, ValueError):
            given = repr(str(self.path))
            raise SettingError(self.setting, given, "the settings", problem, "give the right file") from None


def make_tls(cert_file: Path | None, key_file: Path | None, ca_file: Path | None) -> TLS:
    """Read a certificate and its key; TLS 1.2 is the least.

    :param cert_file: see :class:`TLS`, as for the others.
    :raises SettingError: one cannot be used; it names the setting and the file.
    """
    if cert_file is None or key_file is None:
        name = "ssl_cert_file" if cert_file is None else "ssl_key_file"
        raise SettingError(name, None, "nowhere", "TLS takes a certificate and its key", f"give {name}")
    authorities = None if ca_file is None else _read("ssl_ca_file", ca_file)
    tls = TLS(_read("ssl_cert_file", cert_file), _read("ssl_key_file", key_file), authorities)
    if key_file.stat().st_mode & stat.S_IROTH:
        _log.warn("ssl_key_file {path}: everybody on this host may read it; chmod 600 it", path=str(key_file))
    return tls


def wrap(factory: IProtocolFactory, context: TLS, reactor: Any) -> IProtocolFactory:
    """Have the protocols of a factory speak TLS, whatever socket they are on."""
    return TLSMemoryBIOFactory(context, isClient=False, wrappedFactory=factory, clock=reactor)


def _select(_connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """Agree on HTTP/1.1: there is no other that knows our limits."""
    return _HTTP if _HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _read(setting: str, path: Path) -> Pem:
    try:
        return Pem(setting, path, path.read_bytes())
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        remedy = "give the path of a file that this user may read"
        raise SettingError(setting, repr(str(path)), "the settings", problem, remedy) from error
