"""The token file: who may use the API, and with which scope."""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import attrs

from novasvc.config.errors import SettingError

READ = "read"
ADMIN = "admin"
SCOPES = (READ, ADMIN)
"""read: read-only access; admin: also changes, and calls of nodes."""

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._@-]{1,64})\s+(?P<scope>[a-z]+)\s+(?P<token>[\x21-\x7e]+)")
MIN_LENGTH = 16
"""Characters of a token; a shorter one could be guessed."""
_MAX_TOKENS = 1000
"""Tokens in a file. Each request is compared with all of them."""
_MAX_FILE = 1 << 20
"""Characters of a file that are read."""
_HOW_TO_CREATE = "`novasvc token NAME --scope read` creates the file and a token"
_NOT_OWNER = stat.S_IRWXG | stat.S_IRWXO


@attrs.frozen
class Token:
    """One line of the file.

    :param name: name of its owner, for the log.
    :param scope: "read" or "admin".
    :param digest: SHA-256 of the token. The token itself is not stored.
    """

    name: str
    scope: str
    digest: bytes = attrs.field(repr=False)


def digest(token: str) -> bytes:
    """Return the digest by which a token is stored and compared."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def token_fingerprint(token: Token) -> str:
    """Return a part of the token's digest, by which a session refers to it."""
    return token.digest.hex()[:16]


def find_token(tokens: Sequence[Token], presented: str) -> Token | None:
    """Return the Token of a presented text, or None; in constant time."""
    wanted, found = digest(presented), None
    for token in tokens:  # no early exit, which would tell how far down the file a token is
        if hmac.compare_digest(token.digest, wanted):
            found = token
    return found


def read_tokens(path: Path) -> list[Token]:
    """Read a token file: lines of "name scope token"; empty lines, and those that begin with "#", are ignored.

    :raises SettingError: it cannot be read, others can read it, or a line is invalid. The message contains no token.
    """
    tokens: dict[str, Token] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        token = _token(path, number, line.strip())
        if tokens.setdefault(token.name, token) is not token:
            problem = f"line {number} repeats a name"
            raise _error(path, problem, "give each token a name of its own")
    if not tokens:
        raise _error(path, "it contains no token, so nobody could use the API", _HOW_TO_CREATE)
    if len(tokens) > _MAX_TOKENS:
        raise _error(path, f"it contains {len(tokens)} tokens", f"the maximum is {_MAX_TOKENS}")
    return [*tokens.values()]


def add_token(path: Path, name: str, scope: str, token: str) -> None:
    """Add a line to a token file. It is created with mode 0600 if it does not exist.

    :raises SettingError: the file is invalid, has the name already, or cannot be written.
    """
    line = f"{name} {scope} {token}"
    if _LINE.fullmatch(line) is None:
        remedy = "use 1 to 64 letters, digits and any of . _ @ -"
        raise _error(path, f"{name[:100]!r} cannot be the name of a token", remedy)
    if path.exists() and path.stat().st_size and any(known.name == name for known in read_tokens(path)):
        raise _error(path, f"it has a token named {name!r} already", "choose another name, or remove that line first")
    try:
        ends_with_newline = not path.exists() or path.read_bytes()[-1:] in {b"", b"\n"}
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(line if ends_with_newline else f"\n{line}")
            file.write("\n")
    except OSError as error:
        problem = f"it cannot be written: {error.strerror}"
        raise _error(path, problem, "choose a file in a directory that this user may write") from error


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _NOT_OWNER:
                problem = f"its mode is {mode:04o}, so users other than its owner can read it"
                raise _error(path, problem, f"chmod 600 {path}")
            return file.read(_MAX_FILE).splitlines()
    except PermissionError as error:
        remedy = f"make the user of this process, uid {os.getuid()}, its owner, with mode 0600"
        raise _error(path, f"it cannot be read: {error.strerror}", remedy) from error
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not valid UTF-8"
        raise _error(path, f"it cannot be read: {why}", _HOW_TO_CREATE) from error


def _token(path: Path, number: int, line: str) -> Token:
    match = _LINE.fullmatch(line)
    if match is None or match["scope"] not in SCOPES:
        remedy = f'line {number} must be "name scope token", with scope read or admin'
        raise _error(path, "it has an invalid line", remedy)
    if len(match["token"]) < MIN_LENGTH:
        problem = f"the token in line {number} is too short"
        raise _error(path, problem, f"use at least {MIN_LENGTH} characters; {_HOW_TO_CREATE}")
    return Token(match["name"], match["scope"], digest(match["token"]))


def _error(path: Path, problem: str, remedy: str) -> SettingError:
    return SettingError("api_token_file", str(path), "the configuration", problem, remedy)
