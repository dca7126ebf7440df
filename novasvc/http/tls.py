"""TLS for a server: its certificate, and those of its clients."""

import ssl
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IProtocolFactory

from novasvc.errors import SettingError


def make_tls(cert_file: Path | None, key_file: Path | None, ca_file: Path | None) -> Any:
    """Read a certificate and its key.

    :param cert_file: in PEM; the certificates that lead to its authority may follow it.
    :param key_file: in PEM, without a passphrase.
    :param ca_file: those who vouch for clients; None asks clients for nothing.
    :return: a context factory for :func:`wrap`.
    :raises SettingError: one cannot be used; it names the setting and the file.
    """
    from OpenSSL import SSL, crypto  # noqa: PLC0415 - who speaks no TLS does without
    from twisted.internet.ssl import (  # noqa: PLC0415
        Certificate,
        CertificateOptions,
        trustRootFromCertificates,
    )

    if cert_file is None or key_file is None:
        name = "ssl_cert_file" if cert_file is None else "ssl_key_file"
        raise SettingError(name, None, "nowhere", "TLS takes a certificate and its key", f"give {name}")
    blocks = _certificates("ssl_cert_file", cert_file)
    key_text = _read("ssl_key_file", key_file)
    if b"ENCRYPTED" in key_text:
        raise _error("ssl_key_file", key_file, "it is locked by a passphrase", "take that away: `openssl pkey`")
    try:
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, key_text)
    except (crypto.Error, ValueError, TypeError):
        raise _error("ssl_key_file", key_file, "there is no private key in it", "give a key in PEM") from None
    chain = [Certificate.loadPEM(block).original for block in blocks]
    trust = None
    if ca_file is not None:
        authorities = _certificates("ssl_ca_file", ca_file)
        trust = trustRootFromCertificates([Certificate.loadPEM(block) for block in authorities])
    options = CertificateOptions(privateKey=key, certificate=chain[0], extraCertChain=chain[1:], trustRoot=trust)
    try:
        options.getContext()
    except SSL.Error as error:
        problem = f"it is not the key of the certificate in {cert_file}"
        if "mismatch" not in str(error):
            problem = f"OpenSSL does not take it and {cert_file}: {error.args[0]}"
        raise _error("ssl_key_file", key_file, problem, "give a certificate and its own key") from error
    return options


def wrap(factory: IProtocolFactory, context: Any, reactor: Any) -> IProtocolFactory:
    """Have the protocols of a factory speak TLS, whatever socket they are on.

    :param context: see :func:`make_tls`.
    """
    from twisted.protocols.tls import TLSMemoryBIOFactory  # noqa: PLC0415

    return TLSMemoryBIOFactory(context, isClient=False, wrappedFactory=factory, clock=reactor)


def _certificates(setting: str, path: Path) -> list[bytes]:
    text = _read(setting, path)
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    blocks = [begin + part.partition(end)[0] + end + b"\n" for part in text.split(begin)[1:]]
    try:
        for block in blocks:
            ssl.PEM_cert_to_DER_cert(block.decode())
            _load(block)
    except Exception:  # noqa: BLE001 - what the libraries raise differs from release to release
        blocks = []
    if not blocks:
        raise _error(setting, path, "there is no certificate in it", "give certificates in PEM")
    return blocks


def _load(block: bytes) -> None:
    from OpenSSL import crypto  # noqa: PLC0415

    crypto.load_certificate(crypto.FILETYPE_PEM, block)


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = "give the path of a file that this user may read"
        raise _error(setting, path, f"it cannot be read: {error.strerror or error}", remedy) from error


def _error(setting: str, path: Path, problem: str, remedy: str) -> SettingError:
    return SettingError(setting, repr(str(path)), "the settings", problem, remedy)
