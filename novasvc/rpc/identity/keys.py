"""Files of Ed25519 keys: the one with which a process signs its calls, and those of the callers that it knows.

A line of either is an identity and a key: ``shop private:<base64>``, ``shop public:<base64>``. Empty lines, and those
that begin with "#", are ignored. A key's id is made of its public part. An identity may have several public keys, so
that a key can be replaced without a moment in which calls are refused.
"""

import hashlib
import os
import re
import stat
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from novasvc.config.errors import SettingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY_FILE = "rpc_signing_key_file"
CALLERS_FILE = "rpc_callers_file"

IDENTITY = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_LINE = re.compile(r"(?P<identity>\S+)\s+(?P<part>private|public):(?P<key>\S+)")
_MAX_FILE = 1 << 20
"""Characters of a file that are read."""
_KEY_OCTETS = 32
_HOW_TO_CREATE = "`novasvc key IDENTITY --file FILE` makes a pair of keys"


@attrs.frozen
class SigningKey:
    """The key of an identity.

    :param key_id: see :func:`key_id`.
    """

    identity: str
    key_id: str
    private: "Ed25519PrivateKey" = attrs.field(repr=False)


@attrs.frozen
class CallerKey:
    """One public key of an identity whose calls are accepted."""

    identity: str
    public: "Ed25519PublicKey" = attrs.field(repr=False)


def key_id(public: bytes) -> str:
    """Return the id of a key: the beginning of its fingerprint."""
    return hashlib.sha256(public).hexdigest()[:16]


def read_signing_key(path: Path) -> SigningKey:
    """Read the key with which a process signs.

    :raises SettingError: the file cannot be read, other users can read it, or it does not have exactly one private key.
        The message contains no key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - most do not sign

    lines = _lines(path, SIGNING_KEY_FILE, stat.S_IRWXG | stat.S_IRWXO, "read it", "600")
    if len(lines) != 1:
        raise _error(SIGNING_KEY_FILE, path, f"it has {len(lines)} keys; one is needed", _HOW_TO_CREATE)
    ((number, line),) = lines.items()
    identity, octets = _parse(path, SIGNING_KEY_FILE, number, line, "private")
    private = Ed25519PrivateKey.from_private_bytes(octets)
    return SigningKey(identity, key_id(private.public_key().public_bytes_raw()), private)


def read_callers(path: Path) -> Mapping[str, CallerKey]:
    """Read the public keys of the callers that a service knows.

    :return: keys by their id.
    :raises SettingError: the file cannot be read, other users can write it, it has no key, or a line is invalid.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - as above

    found: dict[str, CallerKey] = {}
    for number, line in _lines(path, CALLERS_FILE, stat.S_IWGRP | stat.S_IWOTH, "write it", "644").items():
        identity, octets = _parse(path, CALLERS_FILE, number, line, "public")
        key = key_id(octets)
        if key in found:
            problem = f"line {number} repeats the key of {found[key].identity!r}"
            raise _error(CALLERS_FILE, path, problem, "give each identity a key of its own")
        found[key] = CallerKey(identity, Ed25519PublicKey.from_public_bytes(octets))
    if not found:
        raise _error(CALLERS_FILE, path, "it has no key, so nobody could call methods with allow=", _HOW_TO_CREATE)
    return found


def create_signing_key(path: Path, identity: str) -> str:
    """Write a new key to a file with mode 0600, which must not exist; return the line for the files of callers.

    :raises SettingError: the identity is not valid, or the file exists or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above

    if IDENTITY.fullmatch(identity) is None:
        problem = f"{identity[:100]!r} cannot be an identity"
        raise _error(SIGNING_KEY_FILE, path, problem, "use 1 to 64 letters, digits and any of . _ @ -")
    private = Ed25519PrivateKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{identity} private:{b64encode(private.private_bytes_raw()).decode()}\n")
    except FileExistsError as error:
        remedy = "choose another file; a key is replaced by a new file, so that the old one still signs meanwhile"
        raise _error(SIGNING_KEY_FILE, path, "it exists already", remedy) from error
    except OSError as error:
        problem = f"it cannot be written: {error.strerror}"
        raise _error(
            SIGNING_KEY_FILE, path, problem, "choose a file in a directory that this user may write"
        ) from error
    return f"{identity} public:{b64encode(private.public_key().public_bytes_raw()).decode()}"


def _lines(path: Path, setting: str, forbidden: int, what: str, mode: str) -> dict[int, str]:
    """Return the lines with keys, by their numbers.

    :param forbidden: mode bits that the file must not have, with ``what`` they let others do.
    """
    try:
        with path.open(encoding="utf-8") as file:
            found = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if found & forbidden:
                problem = f"its mode is {found:04o}, so users other than its owner can {what}"
                raise _error(setting, path, problem, f"chmod {mode} {path}")
            lines = file.read(_MAX_FILE).splitlines()
    except PermissionError as error:
        remedy = f"make the user of this process, uid {os.getuid()}, its owner, with mode 0{mode}"
        raise _error(setting, path, f"it cannot be read: {error.strerror}", remedy) from error
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not valid UTF-8"
        raise _error(setting, path, f"it cannot be read: {why}", _HOW_TO_CREATE) from error
    return {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()[:1] not in {"", "#"}}


def _parse(path: Path, setting: str, number: int, line: str, part: str) -> tuple[str, bytes]:
    match = _LINE.fullmatch(line)
    if match is None or IDENTITY.fullmatch(match["identity"]) is None:
        raise _error(setting, path, f"line {number} is invalid", f'write "identity {part}:key"; {_HOW_TO_CREATE}')
    if match["part"] != part:
        remedy = f"it needs the {part} key, which begins with {part}:"
        raise _error(setting, path, f"line {number} has a {match['part']} key", remedy)
    try:
        octets = b64decode(match["key"], validate=True)
    except ValueError:
        octets = b""
    if len(octets) != _KEY_OCTETS:
        problem = f"the key in line {number} is not {_KEY_OCTETS} octets in base64"
        raise _error(setting, path, problem, _HOW_TO_CREATE)
    return match["identity"], octets


def _error(setting: str, path: Path, problem: str, remedy: str) -> SettingError:
    return SettingError(setting, str(path), "the configuration", problem, remedy)
