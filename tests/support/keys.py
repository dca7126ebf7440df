"""Keys of callers, for tests."""

from collections.abc import Callable, Mapping
from pathlib import Path

from novasvc.rpc.identity.authorization import Authorizer
from novasvc.rpc.identity.keys import CallerKey, create_signing_key, read_callers, read_signing_key
from novasvc.rpc.identity.signature import Signer, Verifier


class KeyRing:
    """A directory with the keys of some identities, and the file of the callers.

    :param time: returns the seconds since the epoch.
    """

    def __init__(self, directory: Path, time: Callable[[], float], *identities: str) -> None:
        self._directory = directory
        self._time = time
        self.callers_file = directory / "callers"
        self.callers_file.touch(mode=0o644)
        for identity in identities:
            self.add(identity)

    def add(self, identity: str, name: str | None = None) -> Path:
        """Make a key, known to the callers' file; return the file of the private key."""
        return self.make(identity, name)[0]

    def make(self, identity: str, name: str | None = None, *, known: bool = True) -> tuple[Path, str]:
        """Make a key; return its file and its public line."""
        path = self._directory / f"{name or identity}.key"
        line = create_signing_key(path, identity)
        if known:
            with self.callers_file.open("a") as file:
                file.write(f"{line}\n")
        return path, line

    def signer(self, name: str) -> Signer:
        return Signer(read_signing_key(self._directory / f"{name}.key"), self._time)

    @property
    def callers(self) -> Mapping[str, CallerKey]:
        return read_callers(self.callers_file)

    def verifier(self, max_age: float = 300.0) -> Verifier:
        return Verifier(self.callers, max_age, self._time)

    def authorizer(self) -> Authorizer:
        return Authorizer(self.verifier())
