"""TLS for a server: its certificate, and those of its clients. Imports OpenSSL; imported when TLS is used."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLContextFactory, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from novasvc.errors import SettingError

_NO_CERTIFICATE = "there is no certificate in PEM in it"
_HTTP = b"http/1.1"


@implementer(IOpenSSLContextFactory)
@attrs.frozen(eq=False)
class TLS:
    """What the connections of a server have in common."""

    _context: SSL.Context

    def getContext(self) -> SSL.Context:  # noqa: N802 - the interface's name
        """Return it; see IOpenSSLContextFactory."""
        return self._context


def make_tls(cert_file: Path | None, key_file: Path | None, ca_file: Path | None) -> TLS:
    """Read a certificate and its key; TLS 1.2 is the least.

    :param cert_file: in PEM; the certificates that lead to its authority may follow it.
    :param key_file: in PEM, without a passphrase.
    :param ca_file: those who vouch for clients, which need a certificate then; None asks clients for nothing.
    :raises SettingError: one cannot be used; it names the setting and the file.
    """
    if cert_file is None or key_file is None:
        name = "ssl_cert_file" if cert_file is None else "ssl_key_file"
        raise SettingError(name, None, "nowhere", "TLS takes a certificate and its key", f"give {name}")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    context.set_alpn_select_callback(_select)
    _use("ssl_cert_file", cert_file, context.use_certificate_chain_file, _NO_CERTIFICATE)

    def use_key(path: str) -> None:
        # Not OpenSSL's own way of reading it, which would ask for a passphrase on the terminal.
        key: Any = load_pem_private_key(Path(path).read_bytes(), None)
        context.use_privatekey(key)
        context.check_privatekey()

    problem = f"there is no private key in PEM without a passphrase in it, or not that of {cert_file}"
    _use("ssl_key_file", key_file, use_key, problem)
    if ca_file is not None:
        _use("ssl_ca_file", ca_file, context.load_verify_locations, _NO_CERTIFICATE)
        context.load_client_ca(str(ca_file).encode())
        context.set_session_id(b"novasvc")  # else who comes again with a certificate is refused
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return TLS(context)


def wrap(factory: IProtocolFactory, context: TLS, reactor: Any) -> IProtocolFactory:
    """Have the protocols of a factory speak TLS, whatever socket they are on."""
    return TLSMemoryBIOFactory(context, isClient=False, wrappedFactory=factory, clock=reactor)


def _select(_connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """Agree on HTTP/1.1: there is no other that knows our limits."""
    return _HTTP if _HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _use(setting: str, path: Path, use: Callable[[str], object], problem: str) -> None:
    source = "the settings"
    try:
        path.open("rb").close()
        use(str(path))
    except OSError as error:
        remedy = "give the path of a file that this user may read"
        raise SettingError(setting, repr(str(path)), source, f"it cannot be read: {error.strerror}", remedy) from error
    except (SSL.Error, TypeError, ValueError):
        raise SettingError(setting, repr(str(path)), source, problem, "give the right file") from None
