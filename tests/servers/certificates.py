"""Certificates for one run: of an authority, of those it vouches for, and of those it does not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import trustme


@attrs.frozen
class Identity:
    """The files, in PEM, of one who has a certificate.

    :param certificate: Path.
    :param key: Path of its private key.
    """

    certificate: Path
    key: Path


class Certificates:
    """Makes all of them, in some milliseconds.

    :param directory: is made; the files are written there.

    Its identities:

    - ``server``: vouched for by ``ca``, for localhost and 127.0.0.1.
    - ``client``: vouched for by ``ca``, of the name "client".
    - ``expired``: as server, until yesterday.
    - ``misnamed``: as server, for elsewhere.example.
    - ``stranger``: as server, but vouched for by ``other_ca``.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        authority, other = trustme.CA(), trustme.CA()
        self.ca = directory / "ca.pem"
        self.other_ca = directory / "other-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        other.cert_pem.write_to_path(str(self.other_ca))
        here = ("localhost", "127.0.0.1")
        now = datetime.now(UTC)
        past = authority.issue_cert(*here, not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))
        self.server = self._write("server", authority.issue_cert(*here))
        self.client = self._write("client", authority.issue_cert("client@example.org", common_name="client"))
        self.expired = self._write("expired", past)
        self.misnamed = self._write("misnamed", authority.issue_cert("elsewhere.example"))
        self.stranger = self._write("stranger", other.issue_cert(*here))

    def _write(self, name: str, issued: trustme.LeafCert) -> Identity:
        identity = Identity(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(str(identity.certificate))
        issued.private_key_pem.write_to_path(str(identity.key))
        return identity
